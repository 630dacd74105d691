#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The SQuAD launcher, which scripts/run_squad*.sh call from any folder; see --help.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ ! -f "$root/.venv/.bertbench" ]; then
    bash "$root/init.sh"
    export BERTBENCH_INSTALLED_S="$SECONDS" # which the run does not count
fi
exec "$root/.venv/bin/python" -I -m bertbench.benchmarks.bert_squad.launch "$@"
