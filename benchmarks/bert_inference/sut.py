# SPDX-License-Identifier: Apache-2.0
"""The system under test: LoadGen's queries to batches, the engine's logits to LoadGen.

A response is a sample's start and end logits, interleaved, float32 [length, 2], without padding:
MLPerf's accuracy script fills the rest. Tokenization is outside the timed path, as in the
reference; padding and batching are inside.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertbench.benchmarks.bert_inference.batches import Cut, Inputs, pad
from bertbench.engines.base import Engine

Issue = Callable[[Sequence[Any]], None]
"""LoadGen's callback: takes its QuerySample values (id, index)."""


class Runner:
    """Runs samples through the engine, answers LoadGen, and counts."""

    def __init__(self, engine: Engine, inputs: Inputs, cut: Cut, loadgen: Any) -> None:
        self._engine, self._inputs, self._cut, self._loadgen = engine, inputs, cut, loadgen
        self._lengths = inputs.lengths
        self.samples = self.real_tokens = self.computed_tokens = self.batches = 0

    def reset(self) -> None:
        """Begin to count again."""
        self.samples = self.real_tokens = self.computed_tokens = self.batches = 0

    def run(self, queries: Sequence[Any]) -> None:
        """Answer all ``queries``, in the batches of the cut."""
        index = np.fromiter((query.index for query in queries), np.int64, len(queries))
        for places in self._cut.batches(self._lengths[index]):
            self._respond([queries[place].id for place in places], index[places])

    def compute(self, rows: np.ndarray) -> np.ndarray:
        """Return the logits of the samples ``rows`` [B], float32 [B, L, 2]."""
        batch = pad(self._inputs, rows, self._cut.length)
        logits = np.stack(self._engine.run(batch), axis=-1)
        self.samples += len(rows)
        self.batches += 1
        self.real_tokens += int(self._lengths[rows].sum())
        self.computed_tokens += batch.input_ids.size
        return np.ascontiguousarray(logits, np.float32)

    def _respond(self, ids: Sequence[int], rows: np.ndarray) -> None:
        logits = self.compute(rows)
        first, step, token = logits.ctypes.data, logits.strides[0], logits.strides[1]
        response = self._loadgen.QuerySampleResponse
        # LoadGen copies what it logs before this returns; the array lives until then.
        self._loadgen.QuerySamplesComplete(
            [
                response(name, first + place * step, length * token)
                for place, (name, length) in enumerate(
                    zip(ids, self._lengths[rows].tolist(), strict=True)
                )
            ]
        )


def guarded(work: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
    """Do ``work``; LoadGen's threads have nobody above them to catch an error."""
    try:
        work()
    except BaseException as error:
        failed(error)


def inline(runner: Runner, failed: Callable[[BaseException], None]) -> Issue:
    """Return a callback that answers each query before it returns: all scenarios but Server."""
    return lambda queries: guarded(lambda: runner.run(queries), failed)


class Waiting:
    """A queue for Server: one thread answers all that waits, a batch at a time, oldest first."""

    def __init__(
        self, runner: Runner, tokens: int, lengths: np.ndarray,
        failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._runner, self._tokens, self._lengths = runner, tokens, lengths.tolist()
        self._queue: deque[Any] = deque()
        self._changed, self._open = threading.Condition(), True
        self._thread = threading.Thread(target=guarded, args=(self._work, failed), daemon=True)
        self._thread.start()

    def issue(self, queries: Sequence[Any]) -> None:
        """Take queries and return at once."""
        with self._changed:
            self._queue.extend(queries)
            self._changed.notify()

    def close(self) -> None:
        """End the thread once it has answered all."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._runner.run(batch)

    def _next(self) -> list[Any]:
        """Return the oldest queries that fit the budget of tokens; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._open)
            taken: list[Any] = []
            longest = 0
            while self._queue:
                longest = max(longest, self._lengths[self._queue[0].index])
                if taken and longest * (len(taken) + 1) > self._tokens:
                    break
                taken.append(self._queue.popleft())
            return taken
