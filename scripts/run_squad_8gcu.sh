#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Enflame's BERT-large on SQuAD, 8 devices: [DATA_PATH=/path] bash scripts/run_squad_8gcu.sh [flags]
here="$(dirname -- "$(readlink -f -- "$0" 2> /dev/null || echo "$0")")/.."
for root in "$here" "${SLURM_SUBMIT_DIR:-$here}" "${SLURM_SUBMIT_DIR:-$here}/.."; do # sbatch runs a copy
    real="$root/benchmarks/bert_squad/launch.sh"
    [ ! -f "$real" ] || exec bash "$real" --cards 8gcu --recipe squad_large_enflame "$@"
done
echo "${0##*/}: its checkout is not found: sbatch it from the checkout's folder, or call it by its path" >&2
exit 2
