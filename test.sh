#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lint, types and tests, after bash init.sh --dev. Arguments go to pytest: bash test.sh -k lamb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ "$(sed -n 2p .venv/.bertbench 2> /dev/null)" = yes ] || bash init.sh --dev

# One thread per process: the processes share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run() {
    echo "test: $*"
    .venv/bin/"$@"
}
run ruff check
run ruff format --check
run mypy
run pytest -n 2 --dist loadfile "$@"
