# SPDX-License-Identifier: Apache-2.0
"""The command line: ``bertbench VERB``.

Exit codes: 0 done, and any target reached; 1 it ran and failed, missed its target, or problems
were found, or its output could not be written (a run's own code stays); 2 refused before anything
ran; 3 another process of the run was lost: it may be started again; 130 interrupted, with a
checkpoint if they are on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO, cast

from bertbench.common.cli.verbs import VERBS, usage
from bertbench.common.config.parser import did_you_mean, wants_json
from bertbench.common.errors import BadInput, BertbenchError, host_memory_ran_out
from bertbench.common.files import OutputLost, Stream, why

SPINS = "20000"
"""How often a thread of GNU OpenMP looks for work before it sleeps, where the user does not say.

Its own 300,000 lose more time than they save where other processes use the processor: ``mini`` on
two cores (AMD Zen 3) beside two busy processes had 8 and 15 sequences/s so, 15 and 17 with this;
alone 40 (39 to 41) and 42 (40 to 48). 1,000 lose where nothing else runs: 37 (34 to 40).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, a BertbenchError's own (2 for BadInput, ...)."""
    args = list(sys.argv[1:] if argv is None else argv)
    verb = args[0].replace("_", "-") if args else ""
    prog = f"bertbench {verb}" if verb in VERBS else "bertbench"
    _open_standard_streams()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout, strict=True), Stream(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        try:
            code = _main(args, prog)
        except SystemExit:  # after --help
            out.flush()
            raise
        if out.problem is None:  # a run has survived its terminal, and keeps its own exit code
            out.flush()
        return code
    except OutputLost:
        if out.problem != os.strerror(errno.EPIPE):  # a reader that has left, as head, knows
            print(f"{prog}: cannot write to standard output: {out.problem}", file=err)
        return 1
    finally:
        out.strict = False  # for whoever kept it, as handlers of loggers do
        err.flush()
        sys.stdout, sys.stderr = before
        for stream in (stream for stream in (out, err) if stream.problem is not None):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes it


def _open_standard_streams() -> None:
    """Give closed descriptors 0 to 2 to the null device, or a file of ours would get them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _main(args: list[str], prog: str) -> int:
    if "WORLD_SIZE" in os.environ:  # before torch: a lost rank is one line, without C++ frames
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:  # which torch's OpenMP reads
        os.environ["GOMP_SPINCOUNT"] = SPINS
    if args[:1] == ["help"] and len(args) > 1:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(_version())
        return 0
    verb, rest = args[0].replace("_", "-"), args[1:]
    try:
        if verb not in VERBS:
            hint = did_you_mean(verb, VERBS)
            raise BadInput(f"unknown verb {args[0]!r}{hint}\n`bertbench help` lists the verbs")
        return VERBS[verb].load()(rest)
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    except BertbenchError as error:
        _failed(str(error), error, prog, rest)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not host_memory_ran_out(error):
            raise
        return _failed(f"out of memory: {why(error)}", error, prog, rest)
    except OSError as error:  # a disk or a file system: no bug of ours, and no input's fault
        return _failed(why(error), error, prog, rest)


def _failed(text: str, error: Exception, prog: str, args: list[str]) -> int:
    if wants_json(args):
        print(json.dumps({"error": text, "kind": type(error).__name__}))
    print(f"{prog}: {text}", file=sys.stderr)
    return 1


def _version() -> str:
    from bertbench.common.measure.code import git_state

    state = git_state()
    commit = f" ({state['commit'][:12]}{', modified' * state['dirty']})" if state["commit"] else ""
    return f"bertbench {version('bertbench')}{commit}"


if __name__ == "__main__":
    sys.exit(main())
