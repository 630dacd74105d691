# SPDX-License-Identifier: Apache-2.0
"""``bertbench score``: the scores of any predictions file, by a benchmark's own rules."""

from __future__ import annotations

from collections.abc import Sequence

from bertbench.benchmarks import load
from bertbench.common.errors import BadInput

SCORED = ("squad",)


def main(argv: Sequence[str]) -> int:
    """Hand the words to the benchmark's verb."""
    words = list(argv)
    if not words or words[0] not in (*SCORED, "-h", "--help"):
        raise BadInput(f"name what to score: bertbench score {'|'.join(SCORED)} [flags]")
    if words[0] not in SCORED:
        print(f"usage: bertbench score {'|'.join(SCORED)} [flags]; each takes --help")
        return 0
    return int(load(f"bert_{words[0]}", "verbs").score_main(words[1:]))
