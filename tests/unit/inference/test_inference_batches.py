# SPDX-License-Identifier: Apache-2.0
"""Batches: every sample once, within the budget, and its own tokens at its own place."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbench.benchmarks.bert_inference.batches import Cut, Inputs, pad
from bertbench.benchmarks.bert_inference.sut import Runner, Waiting, inline
from bertbench.common.data.samples import from_lengths

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200), st.sampled_from([None, 40]))
def test_each_sample_is_in_one_batch_within_the_budget(lengths, tokens, length):
    batches = list(Cut(tokens=tokens, length=length).batches(lengths))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        width = length or lengths[rows].max()
        assert len(rows) == 1 or len(rows) * width <= tokens
        assert len(rows) <= Cut(tokens=tokens, length=length).most(int(lengths.min()))
    if length is None:
        assert [lengths[r] for b in batches for r in b] == sorted(lengths, reverse=True)
    else:
        assert np.concatenate(batches).tolist() == list(range(len(lengths)))


def made(lengths: list[int]) -> Inputs:
    """Inputs whose tokens are 1, 2, 3, ... through all samples."""
    offsets = from_lengths(np.array(lengths))
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Inputs(input_ids=ids, offsets=offsets, split=np.ones(len(lengths), np.int32))


def test_padding_is_zero_in_all_three_arrays():
    batch = pad(made([2, 3, 1]), np.array([1, 2]))
    assert batch.input_ids.tolist() == [[3, 4, 5], [6, 0, 0]]
    assert batch.input_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.segment_ids.tolist() == [[0, 1, 1], [0, 0, 0]]
    wide = pad(made([2, 3, 1]), [0], 5)
    assert wide.input_ids.tolist() == [[1, 2, 0, 0, 0]] and wide.input_ids.dtype == np.int64


class Loadgen:
    """Stands in for LoadGen: keeps a copy of what each answer's memory holds."""

    def __init__(self):
        self.found = {}

    QuerySampleResponse = staticmethod(lambda *values: values)

    def QuerySamplesComplete(self, responses):  # LoadGen's name
        import ctypes

        for name, address, size in responses:
            raw = ctypes.string_at(address, size)
            assert name not in self.found
            self.found[name] = np.frombuffer(raw, np.float32).reshape(-1, 2)


class Engine:
    """Its logits are the token's id, and the negative of it."""

    def run(self, batch):
        ids = batch.input_ids.astype(np.float32)
        return ids, -ids


def queries(rows):
    return [SimpleNamespace(id=100 + place, index=row) for place, row in enumerate(rows)]


@pytest.mark.parametrize("length", [None, 8])
def test_each_query_gets_the_logits_of_its_sample_without_padding(length):
    inputs, loadgen = made([2, 5, 1, 8, 3]), Loadgen()
    runner = Runner(Engine(), inputs, Cut(tokens=16, length=length), loadgen)
    rows = [3, 0, 4, 2, 1, 0]
    inline(runner, pytest.fail)(queries(rows))
    for place, row in enumerate(rows):
        ids = inputs.input_ids[inputs.offsets[row] : inputs.offsets[row + 1]]
        assert loadgen.found[100 + place].tolist() == [[i, -i] for i in ids]
    assert (runner.samples, runner.real_tokens) == (6, 21)
    assert runner.computed_tokens == (6 * 8 if length else 2 * 8 + 4 * 3)


def test_a_queue_answers_all_and_an_error_is_reported():
    inputs, loadgen, errors = made([2, 5, 1, 8, 3]), Loadgen(), []
    runner = Runner(Engine(), inputs, Cut(tokens=9), loadgen)
    waiting = Waiting(runner, 9, inputs.lengths, errors.append)
    asked = queries([3, 0, 4, 2, 1, 0, 3])
    for query in asked:
        waiting.issue([query])
    waiting.close()
    assert loadgen.found.keys() == {query.id for query in asked} and not errors
    waiting = Waiting(runner, 9, inputs.lengths, errors.append)
    waiting.issue([SimpleNamespace(id=0, index=99)])
    waiting.close()
    assert [type(error) for error in errors] == [IndexError]
