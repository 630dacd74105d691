#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Pretraining with the positional parameters of NVIDIA's script of this name; --help lists them.
here="$(dirname -- "$(readlink -f -- "$0" 2> /dev/null || echo "$0")")/.."
for root in "$here" "${SLURM_SUBMIT_DIR:-$here}" "${SLURM_SUBMIT_DIR:-$here}/.."; do # sbatch runs a copy
    real="$root/benchmarks/bert_pretraining/train_bert_pretraining_amp_dist.sh"
    [ ! -f "$real" ] || exec bash "$real" --positional "$@"
done
echo "${0##*/}: its checkout is not found: sbatch it from the checkout's folder, or call it by its path" >&2
exit 2
