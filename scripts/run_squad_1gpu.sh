#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# NVIDIA's BERT-large on SQuAD, one device: [DATA_PATH=/path] bash scripts/run_squad_1gpu.sh [flags]
here="$(dirname "${BASH_SOURCE[0]}")"
exec bash "$here/../benchmarks/bert_squad/launch.sh" --cards 1gpu --recipe squad_large_1 "$@"
