#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# BERT pretraining on every accelerator of this machine, from any folder:
#   bash train_bert_pretraining_amp_dist.sh                 a small run on real text, minutes
#   DATA=/path bash train_bert_pretraining_amp_dist.sh      MLPerf's BERT-large
# It accepts the flags of NVIDIA's and DeepSparkHub's run_pretraining.py; see --help.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ ! -f "$root/.venv/.bertbench" ]; then
    bash "$root/init.sh"
    export BERTBENCH_INSTALLED_S="$SECONDS" # which the run does not count
fi
exec "$root/.venv/bin/python" -I -m bertbench.benchmarks.bert_pretraining.launch "$@"
