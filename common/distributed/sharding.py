# SPDX-License-Identifier: Apache-2.0
"""ZeRO-1 (Rajbhandari et al. 2020): each rank updates some parameters and has their state alone.

The optimizer keeps all its groups. Before an update a rank drops the gradients of the parameters
that are not its own, so the optimizer skips them and makes no state for them; after it, each rank
broadcasts its own in one piece. The norm of all gradients, clipping and the loss scaler come
before, hence every number is that of a run without it, bit for bit, and so is a checkpoint.

Parameters stay whole, since LAMB needs the norms of whole matrices. torch's
``ZeroRedundancyOptimizer`` divides them the same way, but it takes a group's ``segments`` for all
parameters where a rank has some, hides LAMB's ``clip_factor``, sends each parameter by itself, and
collects the state by pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from bertbench.common.errors import Unsupported

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World


class Shards:
    """Which rank updates which parameter of ``optimizer``; with ``size`` 1 rank 0 updates all.

    The largest comes first, each to the rank with the fewest elements so far: the same on every
    rank, and within the largest parameter's size of equal.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rank: int = 0, size: int = 1) -> None:
        self._rank, self.size = rank, size
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.elements = [0] * size
        """Elements of each rank's parameters."""
        self._owned: list[list[int]] = [[] for _ in range(size)]
        order = range(len(self._parameters))
        for index in sorted(order, key=lambda i: self._parameters[i].numel(), reverse=True):
            owner = self.elements.index(min(self.elements))
            self.elements[owner] += self._parameters[index].numel()
            self._owned[owner].append(index)
        self.own = frozenset(self._owned[rank])
        """Indices of this rank's parameters, as the optimizer's ``state_dict`` counts them."""

    @contextmanager
    def update(self, world: World) -> Iterator[None]:
        """Restrict the optimizer's step within to this rank's parameters; then share them all.

        A ``world`` of one rank shares nothing: so a rehearsal can fail on one rank alone.
        """
        for index, parameter in enumerate(self._parameters):
            if index not in self.own:
                parameter.grad = None
        yield
        if world.size > 1 and self.size > 1:
            self._share(world)

    @torch.no_grad()
    def _share(self, world: World) -> None:
        for rank, indices in enumerate(self._owned):
            parts = [self._parameters[i] for i in indices]
            if not parts:
                continue
            if rank == self._rank:
                world.broadcast_(torch.cat([p.reshape(-1) for p in parts]), rank)
                continue
            flat = world.broadcast_(parts[0].new_empty(self.elements[rank]), rank)
            pieces = flat.split([p.numel() for p in parts])
            for parameter, piece in zip(parts, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))


def collect(named: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return all ranks' tensors [...] by name, on rank 0; on others their own.

    Those of other ranks arrive on the host, one at a time. Every rank must call it, with names
    that no other rank has. No tensor is pickled.
    """
    tensors = dict(named)
    listed = world.gather([(name, tuple(t.shape), t.dtype) for name, t in named.items()])
    if not world.is_main:
        for tensor in named.values():
            dist.send(tensor.detach().cpu().contiguous(), 0)
        return tensors
    for rank, entries in enumerate(listed[1:], 1):
        for name, shape, dtype in entries:
            tensors[name] = torch.empty(shape, dtype=dtype)
            dist.recv(tensors[name], rank)
    return tensors


def try_sharding(backend: Backend, world: World, sharding: str) -> list[str]:
    """Try the broadcast of updated weights; return notes for the record.

    Raises Unsupported where it fails or brings other numbers. Every rank must call this.
    """
    if sharding == "none":
        return []
    if world.size == 1:
        return [f"--optimizer_sharding {sharding} has no effect: one process has all of the state"]
    last = world.size - 1
    sent = torch.tensor([1 + 2.0**-20, float(world.rank)], device=backend.device)
    refused = f"{backend.name}: --optimizer_sharding {sharding} is not possible here"
    advice = "Leave --optimizer_sharding out to keep the optimizer's state on every process."
    try:
        found = world.broadcast_(sent, last).tolist()
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise  # another rank is gone
        raise Unsupported(f"{refused}: {str(error).strip().splitlines()[0]}. {advice}") from error
    if found != [1 + 2.0**-20, last]:
        raise Unsupported(f"{refused}: a trial's broadcast brings {found}. {advice}")
    return []
