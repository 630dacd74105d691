#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# BERT pretraining on every accelerator of this machine, from any folder:
#   bash train_bert_pretraining_amp_dist.sh                 a small run on real text, minutes
#   DATA=/path bash train_bert_pretraining_amp_dist.sh      MLPerf's BERT-large
# It accepts the flags of NVIDIA's and DeepSparkHub's run_pretraining.py; see --help.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
unset CDPATH
root="$(cd "$(dirname -- "$(readlink -f -- "$0" 2> /dev/null || echo "$0")")/../.." && pwd)"
[ -f "$root/init.sh" ] || root="${SLURM_SUBMIT_DIR:-$root}" # sbatch runs a copy
if [ ! -f "$root/.venv/.bertbench" ]; then
    if [[ " $* " == *" --help "* ]] && (cd "$root" && "${PYTHON:-python3}" -m bertbench.benchmarks.bert_pretraining.launch "$@" 2> /dev/null); then exit; fi
    bash "$root/init.sh"
    export BERTBENCH_INSTALLED_S="$SECONDS" # which the run does not count
fi
exec "$root/.venv/bin/python" -I -m bertbench.benchmarks.bert_pretraining.launch "$@"
