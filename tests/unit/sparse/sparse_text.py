# SPDX-License-Identifier: Apache-2.0
"""A text that the tests make."""

from __future__ import annotations

import random
from pathlib import Path

NOUNS = "cat dog bird fish tree house river stone cloud road".split()


def make_text(path: Path) -> Path:
    """Sentences with enough regularity to be learnt: one a line, documents apart."""
    rng = random.Random(0)
    documents = []
    for _ in range(80):
        pairs = [(rng.choice(NOUNS), rng.choice(NOUNS)) for _ in range(rng.randint(4, 9))]
        documents.append("\n".join(f"the {a} sees the {b} ." for a, b in pairs))
    path.write_text("\n\n".join(documents))
    return path
