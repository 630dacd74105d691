#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The SQuAD launcher, which scripts/run_squad*.sh call from any folder; see --help.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
[ -f "$root/.venv/.bertbench" ] || bash "$root/init.sh"
exec "$root/.venv/bin/python" -I -m bertbench.benchmarks.bert_squad.launch "$@"
