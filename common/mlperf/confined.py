# SPDX-License-Identifier: Apache-2.0
"""Run one of MLPerf's checkers with few rights: ``python -I confined.py SITE CHECKER ARGUMENTS``.

The checkers execute code from files whose paths they make from values in a log. This process cannot
start programs or connect, has little memory, time and disk, and on Linux with Landlock (5.13) it
opens only Python's own files and those below the current folder and ``BERTBENCH_TREE``. A script of
its own: it imports nothing of the suite.
"""

import contextlib
import ctypes
import importlib
import json
import logging
import os
import resource
import runpy
import signal
import struct
import sys
import sysconfig
from typing import Any

_LIMITS = {
    resource.RLIMIT_CPU: 600,
    resource.RLIMIT_AS: 4 << 30,
    resource.RLIMIT_FSIZE: 64 << 20,
    resource.RLIMIT_CORE: 0,
}
_MAIN = {"compliance_checker": "mlp_compliance", "package_checker": "package_checker"}
_READ, _WRITE = 0b1100, 0b111 << 1 | 1 << 8 | 1 << 5
_PARENT_DEATH, _NO_NEW_PRIVILEGES = 1, 38
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_NEW_USER_AND_NETWORK = 0x50000000
_ALL_FILES, _ALL_TCP = (1 << 13) - 1, 0b11


def limit() -> None:
    """Bound time, memory and files; leave the network."""
    for kind, most in _LIMITS.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # a system without this limit
            resource.setrlimit(kind, (most, most))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        ctypes.CDLL(None).unshare(_NEW_USER_AND_NETWORK)  # where the system lets its users


def restrict(readable: list[str], writable: list[str]) -> bool:
    """Refuse all other files from now on; return whether the kernel can."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else 0
    if version < 1:
        return False
    fields = (_ALL_FILES,) if version < 4 else (_ALL_FILES | 1 << 13 | 1 << 14, _ALL_TCP)
    rules = struct.pack(f"={len(fields)}Q", *fields)
    handle = libc.syscall(_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    for paths, rights in ((readable, _READ), (writable, _WRITE)):
        for path in filter(os.path.isdir, paths):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            libc.syscall(_ADD, handle, 1, struct.pack("=Qi", rights, folder), 0)
            os.close(folder)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return libc.syscall(_RESTRICT, handle, 0) == 0


def convergence(ruleset: str, epochs: str) -> dict[str, Any]:
    """Return the verdict on the logs here, and the numbers that the checker only logs."""
    from mlperf_logging.rcp_checker import rcp_checker

    logged: dict[str, Any] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            args: Any = record.args
            name = str(record.msg).split(":")[0].strip()
            if args and name in ("RCP Record", "Submission mean epochs"):
                # A mapping as the only argument is unpacked by logging itself.
                logged[name] = args if isinstance(args, dict) else float(args[0])

    logging.basicConfig(level=logging.INFO, handlers=[Listener()])
    passed, said, factor = rcp_checker.check_directory(
        ".", "training", ruleset, False, epochs == "epochs", rcp_pass="pruned_rcps"
    )
    return {"passed": bool(passed), "said": said, "factor": float(factor), **logged}


def main() -> None:
    """Import what the checker needs, give up all other rights, then run it."""
    site, checker, *arguments = sys.argv[1:]
    limit()
    sys.path.append(site)
    package = f"mlperf_logging.{checker}"
    importlib.import_module(f"{package}.{_MAIN.get(checker, checker)}")
    own = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    here = [".", *filter(None, [os.environ.get("BERTBENCH_TREE")])]
    restrict([*own, site, "/usr/lib", "/lib", "/lib64"], here)
    if checker == "rcp_checker":
        print(json.dumps(convergence(*arguments), default=float))
        return
    sys.argv = [checker, *arguments]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
