#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Renew core.lock, dev.lock and triton.lock from pyproject.toml: every version and hash, for Python
# 3.10 to 3.13 at once (environment markers tell them apart). Needs the package index and a .venv of init.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet uv

# torch itself is left out (torch.txt), what it needs besides its vendor's libraries is not, and
# neither is setuptools, which builds the editable install without asking the index.
wanted() {
    .venv/bin/python - "$@" <<'PY'
import importlib.metadata
import sys

from pip._vendor import tomli

project = tomli.load(open("pyproject.toml", "rb"))
lines = project["project"]["dependencies"] + project["build-system"]["requires"]
for extra in sys.argv[1:]:
    lines += project["project"]["optional-dependencies"][extra]
foreign = ("nvidia-", "cuda-", "triton")
lines = [line for line in lines if not line.startswith("torch")]
for line in importlib.metadata.requires("torch"):
    if "extra ==" not in line and not line.startswith(foreign):
        lines.append(line)
print("\n".join(lines))
PY
}

compile() {
    "$work/venv/bin/uv" pip compile - --universal --python-version 3.10 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet "$@"
}

wanted > "$work/core.in"
wanted dev arrow compare glue onnx text > "$work/dev.in"
compile -o requirements/core.lock < "$work/core.in" > /dev/null
compile -o requirements/dev.lock -c requirements/core.lock < "$work/dev.in" > /dev/null
# Apart: it belongs to torch's builds for GPUs, which bring their own. --dev adds it to the others.
wanted_triton="$(sed -n 's/^triton = \["\(.*\)"\]$/\1/p' pyproject.toml)"
compile --no-deps -o requirements/triton.lock <<< "$wanted_triton" > /dev/null
echo "renewed requirements/core.lock, dev.lock and triton.lock"
