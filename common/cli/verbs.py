# SPDX-License-Identifier: Apache-2.0
"""The table of verbs: usage, help, completion and parsers are made from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bertbench.common.config.parser import Parser


class Verb(NamedTuple):
    """One row of the table."""

    name: str
    arguments: str
    """As in the usage."""
    summary: str
    target: str = ""
    """MODULE:FUNCTION in common/cli; default: the verb's name, and main."""

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import the verb's module, now and not earlier: each verb costs only its own imports."""
        module, _, function = (self.target or self.name.replace("-", "_")).partition(":")
        found: Callable[[Sequence[str]], int] = getattr(
            importlib.import_module(f"bertbench.common.cli.{module}"), function or "main"
        )
        return found


_TABLE = (
    ("doctor", "[BACKEND]", "Report which backends, devices and precisions work here"),
    ("quick", "", "Estimate this machine's speed, and the first run's time, in about 20 seconds"),
    ("list", "", "List the recipes, their data and their duration", "recipes:list_main"),
    ("describe", "RECIPE", "Print every value of a recipe, and its hash", "recipes:describe_main"),
    ("run", "RECIPE [flags]", "Run a recipe; --dry_run prints the plan", "recipes:run_main"),
    ("rerun", "RECORD [flags]", "Run a record's settings again, on the same data"),
    ("infer", "EXPORT [flags]", "Run MLPerf Inference's BERT on an exported model"),
    ("calibrate", "", "Measure the device's peak rates, the denominator of MFU"),
    ("score", "squad|glue", "Compute the scores of predictions files"),
    ("data", "VERB", "Prepare, pack or check training data"),
    ("masks", "[--pattern P]", "Count and draw masks of sparse attention"),
    ("importance", "-- run ...", "Score a model without the keys of each distance"),
    ("repeat", "N -- run ...", "Repeat a run in new processes with consecutive seeds"),
    ("scale", "-- run ...", "Measure throughput and efficiency on 1, 2, 4, 8 devices"),
    ("project", "--from RUN...", "Project a run to more devices, by a model with stated errors"),
    ("runs", "[PLACE...]", "List runs: by recipe, device, precision, status, date, ..."),
    ("compare", "A B...", "Compare groups of runs: ratio, interval, significance"),
    ("history", "[PLACE...]", "Show how each configuration changed from commit to commit"),
    ("report", "--output DIR", "Write all results as an offline HTML file and Markdown"),
    ("validate", "[RUN...]", "Check records: schema, checksums, protocol, compliance"),
    ("watch", "[RUN...]", "Show the progress of runs live, from files or a pipe"),
    ("rcp", "[RUN...]", "Check convergence against MLPerf's reference points"),
    ("export-weights", "[RUN]", "Export weights for Hugging Face or NVIDIA's scripts"),
    ("import-weights", "FILE", "Convert NVIDIA's megatron.pkl to weights to start from"),
    ("export-onnx", "[RUN]", "Export a SQuAD run's model for inference engines"),
    ("sparsity", "check [PLACE]", "Check that weights are 2:4 sparse: a run's, a file's, ONNX"),
    ("export-mlperf", "[RUN...]", "Write a submission that MLPerf's checker accepts"),
    ("import-mlperf", "FILE...", "Import published MLPerf BERT logs for comparison"),
    ("new-backend", "NAME", "Create a package that adds a backend", "skeletons:new_backend"),
    ("new-benchmark", "NAME", "Create a package that adds a benchmark", "skeletons:new_benchmark"),
    ("completion", "SHELL", "Print the completion script of bash or zsh"),
)
VERBS = {row[0]: Verb(*row) for row in _TABLE}


def parser(verb: str, **options: Any) -> Parser:
    """Return the parser of a verb in the table, with its summary as the description."""
    return Parser(verb, f"{VERBS[verb].summary}.", **options)


def usage() -> str:
    """Return the table for people."""
    calls = {f"{v.name} {v.arguments}".rstrip(): v.summary for v in VERBS.values()}
    width = 2 + max(map(len, calls))
    rows = "\n".join(f"  {call:<{width}}{summary}" for call, summary in calls.items())
    return (
        f"bertbench: a vendor-portable BERT benchmark suite\n\nusage: bertbench VERB\n\n{rows}\n\n"
        f"`bertbench help VERB` describes a verb. Each verb takes --json.\n"
        f"Verbs that take runs have the filters of `bertbench runs`: --recipe, --latest, ...\n"
        f"RECIPE is a name from `bertbench list`. `bertbench --version`: the version."
    )
