# SPDX-License-Identifier: Apache-2.0
"""The model's input: sequences without padding, laid end to end.

Shapes: T real tokens in the micro-batch, B sequences, M masked positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class _Movable:
    """A dataclass of tensors that moves as one."""

    __slots__ = ()

    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """Return a copy on ``device``."""
        return _changed(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pinned(self) -> Self:
        """Return a copy in page-locked host memory: its transfers overlap with computation."""
        return _changed(self, Tensor.pin_memory)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to each tensor of ``value``."""
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, _Movable):
        return value
    own = [f.name for f in fields(value) if f.init]  # type: ignore[arg-type]
    changes = {name: _changed(getattr(value, name), change) for name in own}
    return replace(value, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(_Movable):
    """B sequences laid end to end as T tokens; no padding anywhere."""

    input_ids: Tensor
    """int64 [T]."""
    segment_ids: Tensor
    """int64 [T], 0 for sentence A, 1 for B."""
    position_ids: Tensor
    """int64 [T], restarting at 0 in each sequence."""
    cu_seqlens: Tensor
    """int32 [B + 1], cumulative lengths: sequence b is tokens cu_seqlens[b]:cu_seqlens[b + 1]."""
    lengths: tuple[int, ...]
    """The B lengths on the host, so that no kernel choice needs a device read."""
    max_length: int = field(init=False)
    """The longest of the B lengths. A separate number, since torch.compile would guard on every
    length that ``max(lengths)`` reads, and compile again for each batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_length", max(self.lengths))

    @property
    def num_tokens(self) -> int:
        """T, known on the host."""
        return self.input_ids.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(_Movable):
    """One micro-batch; a benchmark adds its labels."""

    tokens: Tokens

    @property
    def num_samples(self) -> int:
        """B, known on the host."""
        return len(self.tokens.lengths)

    @property
    def num_tokens(self) -> int:
        """T, known on the host."""
        return self.tokens.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingBatch(Batch):
    """One micro-batch of masked-language-model and next-sentence examples."""

    masked_indices: Tensor
    """int64 [M], flat indices into the T tokens, ascending."""
    masked_labels: Tensor
    """int64 [M], the original token ids."""
    next_sentence_labels: Tensor
    """int64 [B], 1 = random next, 0 = true next."""
