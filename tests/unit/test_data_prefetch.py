# SPDX-License-Identifier: Apache-2.0
"""The background thread runs ahead by so much, hands errors on and ends."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import pytest

from bertbench.common.data.prefetch import Prefetcher


def test_prefetch_bounds_what_is_alive_and_passes_errors_on() -> None:
    made = []

    def source() -> Any:
        try:
            for i in range(5):
                made.append(i)
                yield i
            raise ValueError("at the end")
        finally:
            made.append("closed")

    items = Prefetcher(source(), depth=2)
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)  # time in which a third would be made if nothing held it back
    assert made == [0, 1]
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="at the end"):
        next(items)
    assert made[-1] == "closed"

    made.clear()
    items = Prefetcher(source(), depth=1)
    assert next(items) == 0
    items.close()
    assert made[-1] == "closed"
    with pytest.raises(StopIteration):
        next(items)
