#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prunes, trains, quantises, exports and measures BERT, step by step and resumable; see --help.
set -euo pipefail
unset CDPATH
root="$(cd "$(dirname -- "$(readlink -f -- "$0" 2> /dev/null || echo "$0")")/.." && pwd)"
[ -f "$root/init.sh" ] || root="${SLURM_SUBMIT_DIR:-$root}" # sbatch runs a copy
[ -f "$root/.venv/.bertbench" ] || bash "$root/init.sh"
exec "$root/.venv/bin/python" -I -m bertbench.benchmarks.bert_inference.pipeline "$@"
