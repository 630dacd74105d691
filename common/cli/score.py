# SPDX-License-Identifier: Apache-2.0
"""``bertbench score``: the scores of a predictions file by a benchmark's rules."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bertbench import benchmarks
from bertbench.common.cli.verbs import VERBS
from bertbench.common.errors import BadInput


def main(argv: Sequence[str]) -> int:
    """Run the benchmark's verb; raises BadInput for an unknown kind of file."""
    verbs = {k: v for name in benchmarks.names() for k, v in benchmarks.load(name).verbs.items()}
    scored = {verb.split()[1]: target for verb, target in verbs.items() if verb[:6] == "score "}
    usage = f"bertbench score {'|'.join(scored)} [flags]"
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {usage}\n\n{VERBS['score'].summary}.\nEach takes --help.")
        return 0
    if not argv or argv[0] not in scored:
        raise BadInput(f"name the kind of file: {usage}")
    module, _, function = scored[argv[0]].partition(":")
    return int(getattr(importlib.import_module(module), function)(argv[1:]))
