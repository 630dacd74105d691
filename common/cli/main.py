# SPDX-License-Identifier: Apache-2.0
"""The command line: ``bertbench VERB``. Every verb takes --help and --json.

Exit codes: 0 done, and any target reached; 1 it ran and failed, missed its target, or problems
were found; 2 refused before anything ran; 130 interrupted, with a checkpoint if they are on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bertbench.common.errors import BertbenchError


class Verb(NamedTuple):
    """One line of the table."""

    name: str
    arguments: str
    """As the usage shows them."""
    summary: str
    module: str
    """In common/cli, without its path."""
    function: str = "main"

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import the module, here and not before, so that each verb costs only its own imports."""
        module = importlib.import_module(f"bertbench.common.cli.{self.module}")
        function: Callable[[Sequence[str]], int] = getattr(module, self.function)
        return function


_TABLE = (
    ("doctor", "[BACKEND]", "what runs here: backends, devices, precisions, telemetry", "doctor"),
    ("list", "", "the recipes, what they need and how long they take", "recipes", "list_main"),
    ("describe", "RECIPE", "every value of a recipe, its hash, its inputs", "recipes",
     "describe_main"),
    ("run", "RECIPE [flags]", "run one; --dry_run says what would run", "recipes", "run_main"),
    ("calibrate", "", "the device's measured peak rates: the denominator of MFU", "calibrate"),
    ("score", "squad", "EM and F1 of any predictions file, as the official script", "score"),
    ("data", "VERB", "prepare, pack or check training data", "data"),
    ("repeat", "N -- run ...", "fresh processes, one seed after the other; --against takes turns",
     "repeat"),
    ("scale", "-- run ...", "the same on 1, 2, 4, 8 devices: throughput, efficiency", "scale"),
    ("compare", "A B", "two groups of runs: ratios, intervals, significance", "compare"),
    ("report", "--out DIR", "all results as one HTML file that opens offline, and Markdown",
     "report"),
    ("validate", "RUN...", "check records: schema, checksums, protocol, MLPerf compliance",
     "validate"),
    ("watch", "RUN...", "live view of runs that are under way, here or through a pipe", "watch"),
    ("rcp", "RUN...", "MLPerf's convergence check: no faster than the reference", "rcp"),
    ("export-weights", "RUN", "its weights as Hugging Face and NVIDIA's scripts read them",
     "export_weights"),
    ("export-mlperf", "RUN...", "a submission that MLPerf's package checker accepts",
     "export_mlperf"),
    ("import-mlperf", "FILE", "published MLPerf BERT logs as figures to compare with",
     "import_mlperf"),
    ("new-backend", "NAME", "a package for a device that is not here yet", "skeletons",
     "new_backend"),
    ("new-benchmark", "NAME", "a package with a benchmark of your own", "skeletons",
     "new_benchmark"),
)  # fmt: skip
VERBS = {row[0]: Verb(*row) for row in _TABLE}


def usage() -> str:
    """The table, for people."""
    shown = {f"bertbench {v.name} {v.arguments}".rstrip(): v.summary for v in VERBS.values()}
    width = 2 + max(map(len, shown))
    rows = "\n".join(f"  {call:<{width}}{summary}" for call, summary in shown.items())
    return (
        f"bertbench: a vendor-portable BERT benchmark suite\n\n{rows}\n\n"
        f"Each verb takes --help and --json. RECIPE is a name from `bertbench list`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        print(f"bertbench: unknown verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        code = VERBS[verb].load()(rest)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
        return code
    except KeyboardInterrupt:
        print(f"bertbench {verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BertbenchError as error:
        if "--json" in rest:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"bertbench {verb}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
