# SPDX-License-Identifier: Apache-2.0
"""The command line: ``bertbench VERB``.

Exit codes: 0 done, and any target reached; 1 it ran and failed, missed its target, or problems
were found; 2 refused before anything ran; 130 interrupted, with a checkpoint if they are on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from bertbench.common.cli.verbs import VERBS, usage
from bertbench.common.config.parser import did_you_mean
from bertbench.common.errors import BadInput, BertbenchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, 2 for every BertbenchError (BadInput, ...)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "WORLD_SIZE" in os.environ:  # before torch: a lost rank is one line, without C++ frames
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if args[:1] == ["help"] and len(args) > 1:
        args = [*args[1:], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(_version())
        return 0
    verb, rest = args[0].replace("_", "-"), args[1:]
    prog = f"bertbench {verb}" if verb in VERBS else "bertbench"
    try:
        if verb not in VERBS:
            hint = did_you_mean(verb, VERBS)
            raise BadInput(f"unknown verb {args[0]!r}{hint}\n`bertbench help` lists the verbs")
        code = VERBS[verb].load()(rest)
        sys.stdout.flush()  # a reader that has left is noticed here
        return code
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BertbenchError as error:
        if "--json" in rest:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"{prog}: {error}", file=sys.stderr)
        return 2


def _version() -> str:
    from bertbench.common.measure.code import git_state

    state = git_state()
    commit = f" ({state['commit'][:12]}{', modified' * state['dirty']})" if state["commit"] else ""
    return f"bertbench {version('bertbench')}{commit}"


if __name__ == "__main__":
    sys.exit(main())
