# SPDX-License-Identifier: Apache-2.0
"""Training steps over samples that are all in memory, as those of fine-tuning are."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

import numpy as np

from bertbench.common.data.samples import IntArray
from bertbench.common.data.steps import B, Division, Ordered, Pool, StepStream, shuffled

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MemoryStream(StepStream[Pool, B]):
    """Endless steps over one pool, shuffled in each epoch; a benchmark adds ``collate``."""

    places = ("epoch",)

    def __init__(
        self, pool: Pool, arrays: Iterable[IntArray | None], **division: Unpack[Division]
    ) -> None:
        """As StepStream, which may raise BadInput; ``arrays`` identify the data."""
        self._pool = pool
        super().__init__({"data": _fingerprint(arrays)}, **division)

    def ordered(self, stopping: threading.Event) -> Generator[Ordered[Pool], None, None]:
        """Yield all samples in each epoch's order."""
        for epoch in itertools.count(self.start["epoch"]):
            order = shuffled(len(self._pool), self.seed, epoch)
            yield Ordered({"epoch": epoch}, self._pool, order)

    def join(self, pieces: list[tuple[Pool, IntArray]]) -> tuple[Pool, IntArray]:
        """Return the rows [m] of all pieces end to end, [n]."""
        return self._pool, np.concatenate([rows for _, rows in pieces])


def _fingerprint(arrays: Iterable[IntArray | None]) -> int:
    """Return 48 bits that identify the data."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(array.tobytes())
    return int.from_bytes(digest.digest()[:6], "big")
