#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lint, types and tests, after bash init.sh --dev. Arguments go to pytest: bash test.sh -k lamb
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
unset CDPATH
cd "$(dirname -- "$(readlink -f -- "$0" 2> /dev/null || echo "$0")")"
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
