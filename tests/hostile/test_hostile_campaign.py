# SPDX-License-Identifier: Apache-2.0
"""The campaign of hostile files for a minute; by hand it does thousands."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.faults.test_campaign import survives
from tests.hostile import mutate


def test_changes_are_changes_and_are_repeated(tmp_path: Path) -> None:
    """The same random numbers give the same change, and hardly any is none."""
    document, canary = {"a": [1, {"b": "text"}], "c": None}, tmp_path / "canary"
    whole = json.dumps(document)
    for change in (
        lambda rng: mutate.change_json(rng, document, canary)[1],
        lambda rng: mutate.change_lines(rng, f"prefix {whole}\n", canary)[1],
        lambda rng: mutate.change_words(rng, whole, canary)[1],
        lambda rng: mutate.change_bytes(rng, whole.encode(), b"other" * 9)[1].decode("latin-1"),
    ):
        first, second = ([change(random.Random(i)) for i in range(200)] for _ in range(2))
        assert first == second
        assert sum(text in (whole, f"prefix {whole}\n") for text in first) < 20
        assert len(set(first)) > 50


def test_hostile_files_are_survived() -> None:
    """No code runs, nothing hangs or crashes, and no sealed record is valid when it has changed."""
    survives("tests/hostile/campaign.py")
