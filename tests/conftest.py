# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

# As common/cli/main.py does: a broken vendor package must not upset tests of another backend.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

import pytest
import torch

if not torch.accelerator.is_available():
    # Triton reads it when it is imported: its kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bertbench.common.data.batch import PretrainingBatch, Tokens


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        metavar="NAME",
        help="the adapter that tests/contract is about; see `bertbench doctor` (default: cpu_ref)",
    )
    parser.addoption(
        "--benchmark",
        metavar="NAME",
        help="the benchmark that tests/contract is about (default: those built in)",
    )


def interpreted() -> bool:
    """Return whether Triton's kernels run in its interpreter here."""
    return os.environ.get("TRITON_INTERPRET") == "1"


MakeBatch = Callable[..., PretrainingBatch]


@pytest.fixture
def make_batch() -> MakeBatch:
    """A function that makes random but reproducible sequences of the given lengths."""

    def make(lengths: Sequence[int], *, vocab_size: int, masked: int = 3, seed: int = 0):
        """``masked`` positions per sequence (fewer in one that is shorter), never its first.

        Id 0, [PAD], does not occur, as in real data.
        """
        random = torch.Generator().manual_seed(seed)

        def integers(low: int, high: int, count: int) -> torch.Tensor:
            return torch.randint(low, high, (count,), generator=random)

        starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
        positions = [
            start + 1 + torch.randperm(length - 1, generator=random)[:masked].sort().values
            for start, length in zip(starts.tolist(), lengths, strict=False)
        ]
        total = sum(lengths)
        indices = torch.cat(positions)
        return PretrainingBatch(
            tokens=Tokens(
                input_ids=integers(1, vocab_size, total),
                segment_ids=integers(0, 2, total),
                position_ids=torch.cat([torch.arange(length) for length in lengths]),
                cu_seqlens=starts.int(),
                lengths=tuple(lengths),
            ),
            masked_indices=indices,
            masked_labels=integers(1, vocab_size, len(indices)),
            next_sentence_labels=integers(0, 2, len(lengths)),
        )

    return make
