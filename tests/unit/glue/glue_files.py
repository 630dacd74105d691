# SPDX-License-Identifier: Apache-2.0
"""A vocabulary, and GLUE folders of made-up examples, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

WORDS = "the a cat dog one two runs sleeps sees not old new ? .".split()
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def table(path: Path, head: str, rows: list[str]) -> Path:
    """Write a file; fields are separated by | here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [head, *rows] if head else rows
    path.write_text("".join(line.replace("|", "\t") + "\n" for line in lines))
    return path
