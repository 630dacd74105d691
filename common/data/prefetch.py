# SPDX-License-Identifier: Apache-2.0
"""Run an iterator in a background thread, a bounded number of items ahead."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Iterator[T], Generic[T]):
    """The items of ``source``, produced in a background thread.

    At most ``depth`` items wait for the consumer, the one in the making included: with ``depth`` 1
    a consumer that holds one item has at most two in memory. ``next`` raises the errors of
    ``source``. ``close`` ends the thread after the item in the making and closes the generator
    ``source``, whose ``finally`` runs in that thread.
    """

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._source = source
        self._depth = depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._finished = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished or self._closed)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        self._thread.join()
        if self._error is not None and not self._closed:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it; afterwards ``next`` raises StopIteration."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _produce(self) -> None:
        try:
            with contextlib.closing(self._source):
                while self._wait_for_room():
                    try:
                        item = next(self._source)
                    except StopIteration:
                        break
                    with self._changed:
                        if not self._closed:
                            self._ready.append(item)
                            self._changed.notify_all()
                    del item  # or this thread would keep one more alive while it waits
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Block until an item may be made; return False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed
