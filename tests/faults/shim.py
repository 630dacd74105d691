# SPDX-License-Identifier: Apache-2.0
"""Build shim.c and plan what it does: the plan is in memory shared with forked processes."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CALLS = ("write", "read", "open", "rename", "fsync", "mkdir", "unlink", "close", "mmap", "stdio",
         "chmod", "list", "clock")  # fmt: skip
ACTIONS = ("none", "errno", "signal", "move", "clock", "budget")


class Plan(ctypes.Structure):
    """Mirror of ``struct plan`` in shim.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in (
            "armed", "call", "action", "value", "k", "from_then_on", "fired", "done")),
        ("seen", ctypes.c_long * 16),
        *((name, ctypes.c_char * 1024) for name in ("prefix", "fired_path", "source", "target")),
    )  # fmt: skip

    @classmethod
    def shared(cls) -> Plan:
        return cls.from_buffer(mmap.mmap(-1, ctypes.sizeof(cls)))

    def set(self, call: str = "write", action: str = "none", value: int = 0, k: int = 1,
            from_then_on: bool = False, prefix: Path | str = "", source: Path | str = "",
            target: Path | str = "") -> None:  # fmt: skip
        ctypes.memset(ctypes.byref(self), 0, ctypes.sizeof(self))
        self.call, self.action = CALLS.index(call), ACTIONS.index(action)
        self.value, self.k, self.from_then_on = value, k, from_then_on
        self.prefix, self.source, self.target = (os.fsencode(p) for p in (prefix, source, target))

    def arm(self) -> None:
        """Begin, in the process that is to be disturbed."""
        ctypes.CDLL(None).shim_arm(ctypes.byref(self))
        self.armed = 1


def build() -> Path:
    """Return the compiled library; raises RuntimeError where there is no compiler."""
    source = Path(__file__).with_name("shim.c")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        raise RuntimeError("needs Linux and a C compiler")
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"bertbench-shim-{os.getuid()}-{key}.so"
    if not target.exists():
        work = target.with_suffix(f".{os.getpid()}")
        command = [compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(work), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"shim.c does not compile: {made.stderr.strip()[:300]}")
        work.rename(target)
    return target


def preloaded() -> None:
    """Start this program again with the library, unless it has it."""
    library = str(build())
    if os.environ.get("LD_PRELOAD") != library:
        os.environ["LD_PRELOAD"] = library
        os.execv(sys.executable, sys.orig_argv)
