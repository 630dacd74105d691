# SPDX-License-Identifier: Apache-2.0
"""A model of the memory that training takes on one device, in bytes, part by part.

* weights: 4 for each parameter, which are float32;
* gradients: 4 for each; twice that with several processes, whose buckets travel;
* optimizer: 8 for each, its two moments; with ``--optimizer_sharding zero1`` for each of a
  process's share, which is at least the largest parameter;
* copies: 2 for each parameter of a matrix, in 16-bit and 8-bit precisions;
* activations: the tensors that the backward pass needs. They are counted on a model of one layer,
  at one and at two sequences of the largest shape (or of a typical one): the difference, for the
  layer and for the rest, times the layers and the micro-batch. An evaluation keeps those of one
  layer, or of the rest, for its batch;
* working: the gradients of one layer's activations, or the rest's, and a second gradient of the
  embeddings, which the output shares;
* reserve: a quarter of all these, for short-lived tensors and the memory that the allocator keeps.
  So measured on processors, for four shapes of BERT within 8 %; not measured on accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bertbench.backends.base import Backend
from bertbench.common.model.bert import Layer
from bertbench.common.training.task import Task

RESERVE = 0.25
"""Share of the other parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Parameters and saved bytes of one layer, and of the rest of the model."""

    layer_parameters: int
    layer_matrices: int
    """Parameters of the layer that are part of matrices."""
    rest_parameters: int
    rest_matrices: int
    largest_parameter: int
    """Its elements: parameters are not divided."""
    layer_bytes: int
    """Saved for the backward pass of one sequence."""
    rest_bytes: int

    def parameters(self, layers: int) -> int:
        """Return the parameters of a model of so many layers."""
        return self.rest_parameters + layers * self.layer_parameters


def count(task: Task, backend: Backend, *, typical: bool = False) -> Counted:
    """Compute made-up sequences of the largest or a typical shape with the task's model."""
    layers = [part for part in task.model.modules() if isinstance(part, Layer)]
    inside = {id(p): p for layer in layers for p in layer.parameters()}
    outside = [p for p in task.model.parameters() if id(p) not in inside]
    one, two = (_saved(task, backend, layers, size, typical) for size in (1, 2))
    number = max(1, len(layers))
    return Counted(
        layer_parameters=_numel(inside.values()) // number,
        layer_matrices=_numel(p for p in inside.values() if p.ndim > 1) // number,
        rest_parameters=_numel(outside),
        rest_matrices=_numel(p for p in outside if p.ndim > 1),
        largest_parameter=max(p.numel() for p in task.model.parameters()),
        layer_bytes=(two.layers - one.layers) // number,
        rest_bytes=two.rest - one.rest,
    )


def needed(
    counted: Counted, *, layers: int, micro_batch: int, eval_batch: int | None, world_size: int,
    precision: str, optimizer_sharding: str,
) -> dict[str, int]:  # fmt: skip
    """Return the bytes of each part; ``eval_batch`` is None without evaluations."""
    parameters = counted.parameters(layers)
    matrices = counted.rest_matrices + layers * counted.layer_matrices
    training = micro_batch * (counted.rest_bytes + layers * counted.layer_bytes)
    widest = max(counted.rest_bytes, counted.layer_bytes)
    shards = world_size if optimizer_sharding == "zero1" else 1
    evaluation = (eval_batch or 0) * widest
    parts = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters * (1 if world_size == 1 else 2),
        "optimizer": 8 * max(-(-parameters // shards), counted.largest_parameter),
        "copies": 0 if precision in ("fp32", "tf32") else 2 * matrices,
        "activations": max(training, evaluation),
        "working": micro_batch * widest + 4 * counted.rest_matrices,
    }
    return {**parts, "reserve": round(RESERVE * sum(parts.values()))}


@dataclass(slots=True)
class _Saved:
    """Bytes that autograd keeps."""

    layers: int = 0
    rest: int = 0
    seen: set[int] = field(default_factory=set)
    inside: bool = False

    def add(self, tensor: Tensor) -> Tensor:
        """Count the tensor's memory once; returns the tensor."""
        place, size = _memory(tensor)
        if place not in self.seen:
            self.seen.add(place)
            self.layers += size if self.inside else 0
            self.rest += 0 if self.inside else size
        return tensor


def _saved(task: Task, backend: Backend, layers: list[Layer], size: int, typical: bool) -> _Saved:
    """Return the bytes that a forward pass of ``size`` sequences keeps, without parameters."""
    found = _Saved(seen={_memory(p)[0] for p in task.model.parameters()})
    step = task.made_up_step(size, 1, typical=typical)
    (batch,) = step.micro_batches
    batch = batch.to(backend.device)
    with (
        _entered(layers, found),
        torch.autograd.graph.saved_tensors_hooks(found.add, lambda kept: kept),
        backend.precision(task.precision),
    ):
        loss = task.loss(task.model, batch, step)
        backend.synchronize()
        del loss  # only now: until here no memory that was counted is used again
    return found


@contextmanager
def _entered(layers: list[Layer], found: _Saved) -> Iterator[None]:
    """Note in ``found`` whether a layer is being computed."""

    def enter(module: nn.Module, given: Any) -> None:
        found.inside = True

    def leave(module: nn.Module, given: Any, out: Any) -> None:
        found.inside = False

    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor's memory is and its bytes; of itself, where a device hides it."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or -id(tensor), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return -id(tensor), tensor.numel() * tensor.element_size()


def _numel(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)
