# SPDX-License-Identifier: Apache-2.0
"""The creation of samples: C equal to the Python procedure, and both as MLPerf describes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_files import SAMPLE, tokenized

from bertbench.common.data.samples import from_lengths
from bertbench.common.data.tokenization import BertTokenizer, SpecialIds, train_vocab
from bertbench.common.errors import BadInput
from bertbench.common.native import NativeUnavailable
from bertbench.common.prepare import masking
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.masking import (
    MaskingOptions,
    TokenizedText,
    create_samples,
    create_samples_reference,
)

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, vocab_size=1000)


def assert_same(one, two):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        assert a.dtype == b.dtype, field.name
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def both(text, special, options):
    made, implementation = create_samples(text, special, options)
    assert implementation == "c", "these tests compare the C path; a C compiler is needed"
    assert_same(made, create_samples_reference(text, special, options))
    return made


SENTENCE = st.lists(st.integers(5, 999), min_size=1, max_size=40)
DOCUMENT = st.lists(SENTENCE, min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(DOCUMENT, max_size=6),
    length=st.integers(5, 64),
    predictions=st.integers(1, 5),
    prob=st.floats(0, 1),
    short=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dupe=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    vocab_size=st.sampled_from([1000, 1 << 16, 100_000]),
)
def test_c_equals_python(text, length, predictions, prob, short, dupe, seed, vocab_size):
    options = MaskingOptions(
        max_seq_length=length,
        max_predictions_per_seq=predictions,
        masked_lm_prob=prob,
        short_seq_prob=short,
        dupe_factor=dupe,
        random_seed=seed,
    )
    both(tokenized(text), dataclasses.replace(SPECIAL, vocab_size=vocab_size), options)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**32 - 1, 2**32, 2**64 - 1])
def test_generator_is_seeded_as_cpythons(seed):
    rng = np.random.default_rng(seed % 97)
    text = [[rng.integers(5, 999, 9).tolist() for _ in range(7)] for _ in range(40)]
    both(tokenized(text), SPECIAL, MaskingOptions(max_seq_length=64, random_seed=seed))


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE.name} is not beside the repository")
def test_c_equals_python_on_wikipedia_with_mlperfs_parameters():
    some = [d for _, d in zip(range(25), documents(SAMPLE), strict=False)]
    lines = [s for d in some for s in d.sentences]
    tokenizer = BertTokenizer(train_vocab(lines, 4000))
    ids, counts = tokenizer.encode_lines(lines)
    text = TokenizedText(
        ids=ids,
        sentences=from_lengths(counts),
        documents=from_lengths(np.array([len(d.sentences) for d in some])),
    )
    both(text, tokenizer.special, MaskingOptions(dupe_factor=2))


@pytest.fixture(scope="module")
def made():
    """Samples of a text in which token n is followed by n + 1, so that origins can be told."""
    documents = [
        [list(range(start, start + 12)) for start in range(d * 1000, d * 1000 + 600, 12)]
        for d in range(1, 30)
    ]
    special = dataclasses.replace(SPECIAL, vocab_size=32_000)
    return both(tokenized(documents), special, MaskingOptions(max_seq_length=128)), special


def originals(samples, row):
    """A sample's ids with the masked ones put back."""
    ids = samples.input_ids[samples.offsets[row] : samples.offsets[row + 1]].astype(np.int64)
    masked = slice(samples.masked_offsets[row], samples.masked_offsets[row + 1])
    ids[samples.masked_positions[masked]] = samples.masked_labels[masked]
    return ids


def test_every_sample_is_two_spans_of_text(made):
    samples, _ = made
    for row in range(0, len(samples), 7):
        ids, split = originals(samples, row), int(samples.split[row])
        assert (ids[0], ids[split - 1], ids[-1]) == (2, 3, 3)
        a, b = ids[1 : split - 1], ids[split:-1]
        assert len(ids) <= 128
        assert min(len(a), len(b)) >= 1
        assert (np.diff(a) == 1).all()
        assert (np.diff(b) == 1).all()
        if not samples.next_sentence_labels[row]:
            assert a[0] // 1000 == b[0] // 1000, "the true next is of the same document"
            assert b[0] > a[-1]


def test_masks_are_as_described(made):
    samples, special = made
    wanted = np.minimum(76, np.maximum(1, np.round(0.15 * samples.lengths)))
    np.testing.assert_array_equal(samples.masked_counts, wanted)
    at = samples.masked_positions + np.repeat(samples.offsets[:-1], samples.masked_counts)
    shown = samples.input_ids[at]
    assert abs((shown == special.mask).mean() - 0.8) < 0.01
    assert abs((shown == samples.masked_labels).mean() - 0.1) < 0.01
    assert not np.isin(samples.masked_labels, [2, 3]).any(), "[CLS] and [SEP] are never masked"
    random = shown[(shown != special.mask) & (shown != samples.masked_labels)]
    assert abs(random.mean() / 16_000 - 1) < 0.05, "replacements are uniform over the vocabulary"


def test_about_half_are_random_next(made):
    samples, _ = made
    assert 0.5 <= samples.next_sentence_labels.mean() < 0.56


def test_short_seq_prob_is_the_share_of_shorter_passes():
    text = tokenized([[[d, d + 1]] * 63 for d in range(5, 500)])  # 126 tokens: one full sample
    full = {}
    for prob in (0.0, 0.1, 1.0):
        options = MaskingOptions(max_seq_length=128, short_seq_prob=prob, dupe_factor=4)
        samples = both(text, SPECIAL, options)
        full[prob] = (samples.lengths > 120).sum()
    assert abs(full[0.1] / full[0.0] - 0.9) < 0.03
    assert full[1.0] / full[0.0] < 0.15


def test_dupe_factor_gives_other_masks_and_the_order_is_shuffled():
    text = tokenized([[[d * 10 + 5, d * 10 + 6]] * 6 for d in range(1, 60)])
    one = both(text, SPECIAL, MaskingOptions(dupe_factor=1))
    ten = both(text, SPECIAL, MaskingOptions(dupe_factor=10))
    assert len(ten) > 8 * len(one)
    firsts = [originals(one, row)[1] for row in range(len(one))]
    assert firsts != sorted(firsts)


def test_without_a_compiler_python_runs_and_says_so(monkeypatch):
    def missing(*_):
        raise NativeUnavailable("no C compiler found; install gcc\nmore")

    text, options = tokenized([[[5, 6, 7], [8, 9]], [[10, 11]]]), MaskingOptions()
    quick, _ = create_samples(text, SPECIAL, options)
    monkeypatch.setattr(masking, "load", missing)
    slow, implementation = create_samples(text, SPECIAL, options)
    assert implementation == "python: no C compiler found; install gcc"
    assert_same(quick, slow)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_seq_length", 4),
        ("max_predictions_per_seq", 0),
        ("max_seq_length", 40_000),
        ("masked_lm_prob", 1.5),
        ("dupe_factor", 0),
        ("random_seed", -1),
    ],
)
def test_parameters_out_of_range(name, value):
    with pytest.raises(BadInput, match=f"--{name} .* is out of range"):
        MaskingOptions(**{name: value})
