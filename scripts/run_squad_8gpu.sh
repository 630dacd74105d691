#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# NVIDIA's BERT-large on SQuAD, 8 devices: [DATA_PATH=/path] bash scripts/run_squad_8gpu.sh [flags]
here="$(dirname "${BASH_SOURCE[0]}")"
exec bash "$here/../benchmarks/bert_squad/launch.sh" --cards 8gpu --recipe squad_large "$@"
