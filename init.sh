#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make .venv with everything bertbench needs. Needs no root and may be repeated.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh init.sh
set -euo pipefail
unset CDPATH
self="$(readlink -f -- "$0" 2> /dev/null || echo "$0")"
root="$(cd "$(dirname -- "$self")" && pwd)"
[ -f "$root/pyproject.toml" ] || root="${SLURM_SUBMIT_DIR:-$root}" # sbatch runs a copy
[ -f "$root/scripts/outer_torch.py" ] || {
    echo "init: error: bertbench's other files are not in $root: call init.sh by its path in the checkout, or sbatch it from that folder" >&2
    exit 1
}
started_in="$PWD"
cd "$root"
venv="$root/.venv"
stamp="$venv/.bertbench"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

usage() {
    cat <<'TEXT'
usage: bash init.sh [--dev] [--backend NAME] [--download DIR | --wheelhouse DIR] [--dry-run]

Makes .venv beside this file and installs bertbench into it.
  --dev            add the packages of the tests and linters
  --backend NAME   a folder of backends/; cpu_ref ignores any installed torch, other backends
                   need the vendor's torch in the same Python; kept for later calls until
                   --backend auto
  --download DIR   fetch the packages' files into DIR and install nothing: for a machine of this
                   kind, with the same Python, that reaches no package index
  --wheelhouse DIR install from such a folder alone
  --dry-run        print the steps and do nothing
Environment: PYTHON=/path/to/python picks the Python (3.10 to 3.13); pip's settings apply.
The torch of a vendor's container or SDK is used unchanged and never replaced.
TEXT
}

say() { echo "init: $*"; }
fail() {
    echo "init: error: $*" >&2
    exit 1
}
act() { # act "description" command...
    say "$1"
    shift
    if [ "$dry" = no ]; then "$@"; fi
}

dev=no backend="" dry=no download="" wheelhouse=""
while [ $# -gt 0 ]; do
    case "$1" in
        --dev) dev=yes ;;
        --backend=*) backend="${1#*=}" ;;
        --backend)
            [ $# -ge 2 ] || fail "--backend needs a name"
            backend="$2"
            shift
            ;;
        --download | --wheelhouse)
            [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a folder"
            case "$2" in /*) folder="$2" ;; *) folder="$started_in/$2" ;; esac
            if [ "$1" = --download ]; then download="$folder"; else wheelhouse="$folder"; fi
            shift
            ;;
        --dry-run | --dry_run) dry=yes ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "unknown option $1" ;;
    esac
    shift
done
[ -z "$download" ] || [ -z "$wheelhouse" ] || fail "--download fetches and --wheelhouse installs: give one of them"
if [ -n "$wheelhouse" ]; then
    compgen -G "$wheelhouse/*.whl" > /dev/null || fail "--wheelhouse $wheelhouse has no wheels: 'bash init.sh --download DIR' fetches them on a machine with a package index"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheelhouse"
fi
if [ -z "$backend" ]; then # an earlier call's backend stays until --backend auto
    backend="$(sed -n 4p "$stamp" 2> /dev/null || true)"
    [ -z "$backend" ] || [ "$backend" = auto ] || say "keeping --backend $backend of an earlier call"
fi
backend="${backend:-auto}"
[ "$backend" != cpu ] || backend=cpu_ref # as ALIASES of backends/registry.py
if [ "$backend" != auto ] && [ ! -f "backends/$backend/backend.py" ]; then
    fail "no backend '$backend' here; there are: $(cd backends && echo */backend.py | sed 's,/backend.py,,g')"
fi

# Up to date, where the same inputs were installed before.
key="$(cat init.sh pyproject.toml requirements/*.lock requirements/torch.txt scripts/outer_torch.py | cksum)"
own() { # does .venv hold the bertbench of this folder, and not that of the one it was moved from?
    "$venv/bin/python" -I -c 'import os, bertbench
os.path.samefile(os.path.dirname(bertbench.__file__), "bertbench") or exit(1)' 2> /dev/null
}
end_if_up_to_date() {
    if [ -z "$download" ] && [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$key" ] && [ "$(sed -n 4p "$stamp")" = "$backend" ] &&
        { [ "$dev" = no ] || [ "$(sed -n 2p "$stamp")" = yes ]; } && own; then
        say ".venv is up to date; '.venv/bin/bertbench doctor' shows what runs here"
        exit 0
    fi
}
end_if_up_to_date
if [ "$dry" = no ] && command -v flock > /dev/null && { : >> .venv.lock; } 2> /dev/null; then
    exec 9>> .venv.lock
    flock --nonblock 9 || {
        say "waiting for another init.sh that is making $venv"
        flock 9
    }
    end_if_up_to_date # it may have done the work
fi
[ ! -f "$stamp" ] || [ "$(sed -n 2p "$stamp")" = no ] || dev=yes # keep the packages of an earlier --dev

usable() { # is "$1" a Python 3.10 to 3.13?
    "$1" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

ours() { # is "$1" in an environment that init.sh made? This may remove it, and its torch is ours
    "$1" -c 'import os, sys
made, venv = os.path.join(sys.prefix, ".bertbench"), os.path.realpath(sys.argv[1])
sys.exit(not (os.path.exists(made) or os.path.realpath(sys.prefix) == venv))' "$venv" 2> /dev/null
}
behind() { "$1" -c 'import sys; print(sys._base_executable)'; } # the Python that it was made from

# Which Python: the one named, else one with a vendor's torch, else the first that fits. An
# environment of ours that is activated hides others of PATH, or at least the one behind it.
probe() { eval "$("$1" scripts/outer_torch.py)"; }
python="" outer_kind=none outer_what="" outer_version="" outer_supported=yes outer_hidden_site=""
if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.10 to 3.13 with its venv module"
    python="$PYTHON"
    ! ours "$python" || python="$(behind "$python")"
    probe "$python"
else
    candidates=() last=()
    for name in python3.11 python3.12 python3.13 python3.10 python3 python; do
        while read -r path; do
            usable "$path" || continue
            ! ours "$path" || { last=("$(behind "$path")") && continue; }
            candidates+=("$path")
            break
        done < <(type -ap "$name")
    done
    for path in ${candidates[@]+"${candidates[@]}"} ${last[@]+"${last[@]}"}; do
        usable "$path" || continue
        [ "$backend" != cpu_ref ] || { python="$path" && break; }
        probe "$path"
        if [ "$outer_kind" = vendor ] || [ "$outer_kind" = broken ]; then
            python="$path"
            break
        fi
        python="${python:-$path}"
        outer_kind=none
    done
fi
[ -n "$python" ] || fail "no Python 3.10 to 3.13 found; install one (for example: apt install python3 python3-venv), or name it with PYTHON=/path/to/python"
say "Python is $python ($("$python" -c 'import platform; print(platform.python_version())'))"

mode=locked
if [ "$backend" = cpu_ref ]; then
    outer_kind=none
    say "--backend cpu_ref: installing torch into .venv, whatever is installed outside"
elif [ "$outer_kind" = broken ]; then
    fail "the torch of $python does not import ($outer_what). Repair it, or ignore it with --backend cpu_ref or PYTHON=/another/python"
elif [ "$outer_kind" = vendor ]; then
    [ "$outer_supported" = yes ] || fail "$python has $outer_what; bertbench needs torch 2.10 to 2.15 and does not replace a vendor's. Use a newer container, or ignore it with --backend cpu_ref or PYTHON=/another/python"
    mode=vendor
    say "found $outer_what: used unchanged (--backend cpu_ref or PYTHON=... to change that)"
elif [[ ! "$backend" =~ ^(auto|cuda|mps)$ ]]; then
    fail "backend '$backend' needs its vendor's torch, and $python has none. Run this inside the vendor's container, or name its Python with PYTHON=/path/to/python"
fi

# -- the environment ------------------------------------------------------------------------------
options=() fresh=no
[ "$mode" = locked ] || options+=(--system-site-packages)
wanted_layout="$mode $("$python" -c 'import sys; print(sys.version_info[:2], sys.base_prefix)')"
if [ -e "$venv" ] && { ! "$venv/bin/python" -c 'import pip' 2> /dev/null ||
    { [ -f "$stamp" ] && { [ "$(sed -n 3p "$stamp")" != "$wanted_layout" ] || ! own; }; }; }; then
    act "removing .venv: it is broken, was moved, or is made for another Python or another torch" rm -rf "$venv"
    fresh=yes
fi
make_venv() {
    if "$python" -m venv ${options[@]+"${options[@]}"} "$venv" > "$work/venv.log" 2>&1; then return; fi
    # Debian and many containers ship Python without ensurepip: borrow the outer pip.
    "$python" -m venv --clear --without-pip ${options[@]+"${options[@]}"} "$venv" > "$work/venv.log" 2>&1 &&
        "$python" -m pip --python "$venv/bin/python" install --quiet pip 2> "$work/venv.log" ||
        fail "$python cannot make a virtual environment ($(tail -1 "$work/venv.log")). Install its venv module (for example: apt install python3-venv)"
}
if [ "$fresh" = yes ] || [ ! -x "$venv/bin/python" ]; then
    act "making .venv${options[*]:+ (${options[*]})}" make_venv
fi
[ "$dry" = yes ] || [ -n "$download" ] || rm -f "$stamp"
if [ "$mode" = vendor ] && [ -n "$outer_hidden_site" ] && [ "$dry" = no ]; then
    tr ':' '\n' <<< "$outer_hidden_site" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_outer.pth"
fi

# -- the packages ---------------------------------------------------------------------------------
how=(install) doing=installing
[ -z "$download" ] || { how=(download --dest "$download") && doing=fetching; }
pip() {
    local output="$work/pip.log"
    [ "$1" != --progress ] || { shift && [ ! -t 1 ] || output=/dev/stdout; }
    "$venv/bin/python" -m pip "${how[@]}" --disable-pip-version-check "$@" > "$output" 2>&1 && return
    cat "$work/pip.log" >&2
    local missing="$(sed -n 's/^ERROR: No matching distribution found for \([^ ]*\).*/\1, which it did not find/p' "$work/pip.log" | grep . || echo "these packages, see above")"
    local flags="$([ "$dev" = no ] || echo ' --dev')"
    [ -z "$wheelhouse" ] || fail "$wheelhouse has not all files; pip could not install $missing. Fetch them with the same Python (\"bash init.sh --download DIR$flags\") on a machine of this kind"
    fail "pip could not ${how[0]} $missing. Without a package index: on a machine of this kind that has one, in a copy of this folder, run 'bash init.sh --download wheels$flags' with $("$venv/bin/python" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])'), copy its folder wheels to $root/wheels, and run here: bash init.sh --wheelhouse wheels$flags"
}
touch "$work/pip.log"
lock="requirements/core.lock" && [ "$dev" = no ] || lock="requirements/dev.lock"
if [ "$mode" = locked ]; then
    act "$doing $lock (versions and hashes are fixed)" pip --require-hashes --no-deps -r "$lock"
    act "$doing $(grep '^torch' requirements/torch.txt) (the build your pip settings offer; it may be large)" \
        pip --progress -r requirements/torch.txt
    if [ "$dev" = yes ] && ! compgen -G "${download:-/nowhere}/triton-*" > /dev/null && ! "$venv/bin/python" -c 'import importlib.metadata as m
any(line.startswith("triton") for line in m.requires("torch")) or exit(1)' 2> /dev/null; then
        act "$doing requirements/triton.lock (1 GB; tests of its kernels need it, and torch's CPU builds have none)" \
            pip --require-hashes --no-deps -r requirements/triton.lock
    fi
else
    cat > "$work/wanted.py" <<'PY'
import sys
from pip._vendor import tomli

project = tomli.load(open("pyproject.toml", "rb"))
lines = project["build-system"]["requires"] + project["project"]["dependencies"]
for extra in sys.argv[1:]:
    lines += project["project"]["optional-dependencies"][extra]
print("\n".join(line for line in lines if not line.startswith("torch")))
PY
    extras=() && [ "$dev" = no ] || extras=(dev arrow compare glue onnx text)
    if [ "$dry" = no ]; then
        "$venv/bin/python" "$work/wanted.py" ${extras[@]+"${extras[@]}"} > "$work/wanted.txt"
        "$venv/bin/python" scripts/outer_torch.py --constraints > "$work/pins.txt"
    fi
    act "$doing the missing packages beside $outer_what (lower bounds of pyproject.toml, not the lock)" \
        pip -r "$work/wanted.txt" -c "$work/pins.txt"
fi
if [ -n "$download" ]; then
    say "done. Copy $download to the other machine, and run there: bash init.sh --wheelhouse DIR$([ "$dev" = no ] || echo ' --dev')"
    exit 0
fi
act "installing bertbench, editable" pip --no-deps --no-build-isolation -e .
if [ "$dry" = yes ]; then exit 0; fi
[ "$mode" = vendor ] || "$venv/bin/python" -m pip check > "$work/check.log" || fail "$(cat "$work/check.log")"

if [ -z "${CC:-}" ] && ! command -v cc > /dev/null && ! command -v gcc > /dev/null; then
    say "warning: no C compiler: data preparation and the CPU kernels fall back to slower plain code, as every record shows. Install gcc or clang, or set CC"
fi
printf '%s\n' "$key" "$dev" "$wanted_layout" "$backend" > "$stamp"
"$venv/bin/bertbench" doctor
say "done. Speed, 20 s: .venv/bin/bertbench quick   Train: bash train_bert_pretraining_amp_dist.sh   Test: bash test.sh   Shell: . .venv/bin/activate"
