#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Enflame's BERT-large on SQuAD, one device: [DATA_PATH=/path] bash scripts/run_squad_1gcu.sh [flags]
here="$(dirname "${BASH_SOURCE[0]}")"
exec bash "$here/../benchmarks/bert_squad/launch.sh" --cards 1gcu --recipe squad_large_enflame_1 "$@"
