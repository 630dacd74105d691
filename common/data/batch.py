# SPDX-License-Identifier: Apache-2.0
"""What a model is fed: sequences without padding, laid end to end.

Shapes: T real tokens in the micro-batch, B sequences, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
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
    """The longest of the B lengths. A number of its own and not ``max(lengths)`` at each use:
    torch.compile would guard on every single length and compile again for each batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_length", max(self.lengths))

    @property
    def num_tokens(self) -> int:
        """T, known on the host."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device, non_blocking: bool = True) -> Tokens:
        """The same tokens on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            segment_ids=self.segment_ids.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
        )

    def pinned(self) -> Tokens:
        """The same tokens in page-locked host memory: copies from it overlap with computation."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            segment_ids=self.segment_ids.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            cu_seqlens=self.cu_seqlens.pin_memory(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingBatch:
    """One micro-batch of masked-language-model and next-sentence examples."""

    tokens: Tokens
    masked_indices: Tensor
    """int64 [M], flat indices into the T tokens, ascending."""
    masked_labels: Tensor
    """int64 [M], the original token ids."""
    next_sentence_labels: Tensor
    """int64 [B], 1 = random next, 0 = true next."""

    @property
    def num_samples(self) -> int:
        """B, known on the host."""
        return len(self.tokens.lengths)

    @property
    def num_tokens(self) -> int:
        """T, known on the host."""
        return self.tokens.num_tokens

    def to(self, device: torch.device, non_blocking: bool = True) -> PretrainingBatch:
        """The same batch on ``device``."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking),
            masked_indices=self.masked_indices.to(device, non_blocking=non_blocking),
            masked_labels=self.masked_labels.to(device, non_blocking=non_blocking),
            next_sentence_labels=self.next_sentence_labels.to(device, non_blocking=non_blocking),
        )

    def pinned(self) -> PretrainingBatch:
        """The same batch in page-locked host memory."""
        return replace(
            self,
            tokens=self.tokens.pinned(),
            masked_indices=self.masked_indices.pin_memory(),
            masked_labels=self.masked_labels.pin_memory(),
            next_sentence_labels=self.next_sentence_labels.pin_memory(),
        )
