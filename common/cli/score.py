# SPDX-License-Identifier: Apache-2.0
"""``bertbench score``: the scores of a predictions file by a benchmark's rules."""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks import load
from bertbench.common.cli.verbs import VERBS
from bertbench.common.errors import BadInput

SCORED = ("squad",)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark's verb; raises BadInput without a benchmark."""
    words = list(argv)
    if not words or words[0] not in (*SCORED, "-h", "--help"):
        raise BadInput(f"name a benchmark: bertbench score {'|'.join(SCORED)} [flags]")
    if words[0] not in SCORED:
        print(f"usage: bertbench score {'|'.join(SCORED)} [flags]\n\n{VERBS['score'].summary}.")
        print("`bertbench score squad --help` lists the flags")
        return 0
    return int(load(f"bert_{words[0]}", "verbs").score_main(words[1:]))
