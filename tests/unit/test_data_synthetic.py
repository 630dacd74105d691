# SPDX-License-Identifier: Apache-2.0
"""Random samples have real lengths and are sound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.schema import write_varlen
from bertbench.common.data.synthetic import random_lengths, random_samples
from bertbench.common.errors import BadInput


def test_synthetic_lengths_are_wikipedias() -> None:
    rng = np.random.default_rng(0)
    lengths = random_lengths(100_000, 512, rng)
    assert len(lengths) == 100_000
    assert abs(lengths.mean() - 255.8) < 2  # arXiv 2107.02027's histogram
    assert abs((lengths == 512).mean() - 0.2343) < 0.01
    assert lengths.min() >= 5 and lengths.max() == 512
    short = random_lengths(1000, 128, rng)
    assert len(short) == 1000 and short.max() == 128 and 0.8 < short.mean() / 128 < 0.88
    assert random_lengths(1000, 1024, rng).max() == 1024


@given(
    length=st.integers(5, 600),
    predictions=st.integers(1, 80),
    vocab=st.sampled_from([5, 1000, 30522, 70000]),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_synthetic_samples_pass_the_readers_checks(
    tmp_path_factory: pytest.TempPathFactory, length: int, predictions: int, vocab: int, seed: int
) -> None:
    limits = Limits(max_seq_length=length, max_predictions=predictions, vocab_size=max(vocab, 6))
    samples = random_samples(50, limits, seed)
    path = tmp_path_factory.mktemp("synthetic") / "part"
    write_varlen(path, samples)
    again = read(path, limits)
    for name in ("input_ids", "offsets", "split", "masked_positions", "masked_labels"):
        assert np.array_equal(getattr(again, name), getattr(samples, name))


def test_shapes_too_small_for_a_sample() -> None:
    with pytest.raises(BadInput, match="needs at least 5 tokens and 5 words"):
        random_samples(5, Limits(vocab_size=4), 0)
