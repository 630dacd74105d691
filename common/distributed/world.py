# SPDX-License-Identifier: Apache-2.0
"""The ranks that torchrun starts; without torchrun, one process without a process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from bertbench.common.config.launched import Ranks, check_alone, ranks
from bertbench.common.distributed.peers import Peers


class _Joins(Protocol):
    def init_process_group(self, collective: str | None = None, **kwargs: Any) -> None: ...


_LEFT: list[Any] = []
"""Process groups kept alive until the process ends (see ``World.joined``)."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's rank among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_env(cls) -> World:
        """Read torchrun's variables; all absent means one process.

        Raises BadInput where they are wrong, or another launcher started several processes.
        """
        check_alone()
        return cls(*ranks())

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    @contextmanager
    def joined(self, backend: _Joins, collective: str | None) -> Iterator[Peers | None]:
        """Join the process group for the duration of the block; yield the watch over the others.

        Raises BadInput or PeerLost where the ranks do not meet.
        """
        if self.size == 1:
            yield None
            return
        peers = Peers(Ranks(self.rank, self.size, self.local_rank, self.local_size))
        try:
            peers.meet()
            store = PrefixStore("group", peers.store)
            timeout = timedelta(minutes=10)
            backend.init_process_group(
                collective, timeout=timeout, store=store, rank=self.rank, world_size=self.size
            )
            yield peers
        except BaseException as error:
            known = peers.explain(error)
            peers.leave(known)
            if known is error:
                raise
            raise known from error
        else:
            peers.leave()
        finally:
            # DDP's reducer must not drop the last reference to the group: it would hold the
            # interpreter's lock while it joins gloo's threads, and one of these may be waiting for
            # that lock, to free an all-reduce that just ended (torch 2.13): a deadlock.
            if dist.is_initialized():
                _LEFT.append(dist.group.WORLD)
                dist.destroy_process_group()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` [...] over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor, source: int) -> Tensor:
        """Overwrite ``tensor`` [...] with that of rank ``source``, in place."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value``, a small Python object, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def max_async(self, code: int) -> Agreement:
        """Start to find the largest ``code`` of any rank, without a device synchronisation."""
        tensor = torch.tensor([code], dtype=torch.int32)
        work = None
        if self.size > 1:
            work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)
        return Agreement(tensor, work)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The pending result of ``World.max_async``."""

    _tensor: Tensor
    _work: Any

    def result(self) -> int:
        """Wait for every rank's code and return the largest."""
        if self._work is not None:
            self._work.wait()
        return int(self._tensor.item())
