# SPDX-License-Identifier: Apache-2.0
"""Fixed patterns: their published counts, their structure, and how their text is read."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbench.common.errors import BadInput
from bertbench.common.masks.patterns import MAX_LENGTH, PATTERNS, parameters, parse

COUNTS = {"dense": 16384, "strided": 4852, "fixed": 4480, "logsparse": 1666, "star": 634}


@pytest.mark.parametrize(("name", "nnz"), COUNTS.items())
def test_counts_of_the_table(name: str, nnz: int) -> None:
    assert parse(name).bits(128).sum() == nnz


@pytest.mark.parametrize(("name", "percent"), [("longformer", 88.7), ("bigbird", 93.2)])
def test_our_presets_give_the_table_s_ratios(name: str, percent: float) -> None:
    assert round(100 * (1 - parse(name).bits(128).mean()), 1) == percent


def test_fixed_is_the_only_default_that_is_not_symmetric() -> None:
    asymmetric = {n for n in PATTERNS if (b := parse(n).bits(64), (b != b.T).any())[1]}
    assert asymmetric == {"fixed", "bigbird"}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(set(PATTERNS) - {"dense"})),
    length=st.integers(1, 200),
    shorter=st.integers(1, 200),
    block=st.sampled_from([1, 3, 16]),
)
def test_every_pattern_has_the_diagonal_and_shorter_ones_in_its_corner(
    name: str, length: int, shorter: int, block: int
) -> None:
    pattern = parse(f"{name}:block={block}")
    bits = pattern.bits(length)
    assert bits.shape == (length, length)
    assert bits.diagonal().all()
    if name != "bigbird":
        least = min(shorter, length)
        assert (pattern.bits(least) == bits[:least, :least]).all()
    coarse = parse(name).bits(-(-length // block))
    i, j = np.indices((length, length)) // block
    assert (bits == coarse[i, j]).all()


def test_parameters_by_brute_force() -> None:
    n = 40
    cases = {
        "strided:stride=6": lambda i, j: abs(i - j) <= 6 or abs(i - j) % 6 == 0,
        "fixed:stride=8,summary=3": lambda i, j: i // 8 == j // 8 or j % 8 in (5, 6, 7),
        "longformer:window=2,dilation=3,globals=0+7+99": lambda i, j: (
            abs(i - j) in (0, 3, 6) or {i, j} & {0, 7}
        ),
        "logsparse:window=3": lambda i, j: abs(i - j) in (0, 1, 2, 3, 4, 8, 16, 32),
        "bigbird:random=0,window=1,globals=": lambda i, j: abs(i - j) <= 1,
        "star:window=0,globals=5": lambda i, j: i == j or 5 in (i, j),
    }
    for text, rule in cases.items():
        expected = np.array([[bool(rule(i, j)) for j in range(n)] for i in range(n)])
        assert (parse(text).bits(n) == expected).all(), text


def test_random_keys_are_the_same_everywhere() -> None:
    """The bits of a seed are part of every record: they must never change."""
    bits = parse("bigbird:window=0,globals=,random=3").bits(96)
    digest = hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()
    assert digest[:16] == "c4feb52a4aa30c6f"
    other = parse("bigbird:window=0,globals=,random=3,seed=8").bits(96)
    assert 0 < (bits & other).sum() < bits.sum()
    many = parse("bigbird:window=0,globals=,random=64").bits(1024) & ~np.eye(1024, dtype=bool)
    halves = many[:, :512].sum() / many.sum()
    assert abs(halves - 0.5) < 0.01
    assert many.sum(1).min() > 48, "draws of a query must differ from each other"


def test_masks_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        parse("star").bits(8)[0, 0] = False


@pytest.mark.parametrize("name", PATTERNS)
def test_texts_are_read_back(name: str) -> None:
    pattern = parse(name)
    assert (pattern.text, parse(pattern.full_text)) == (name, pattern)
    for key, parameter in parameters(name).items():
        value = "3+1" if isinstance(parameter.default, tuple) else "2"
        changed = parse(f"{name}:{key}={value}" + (",stride=9" if key == "summary" else ""))
        assert parse(changed.text) == changed


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("stars", "unknown pattern 'stars'; known: dense, strided, fixed"),
        ("", "unknown pattern ''"),
        ("star:", "'' is not key=value of star; known: window, globals, block"),
        ("star:width=1", "'width=1' is not key=value of star"),
        ("dense:block=2", "known: no parameters"),
        ("star:window=1,window=2", "'window=2' is given twice"),
        ("star:window=x", "window must be a whole number from 0 to 16384"),
        ("star:window=-1", "window must be a whole number"),
        ("strided:stride=0", "stride must be a whole number from 1"),
        ("star:globals=1+", "globals must be at most 64 numbers"),
        ("star:globals=99999", "from 0 to 16383"),
        ("star:globals=" + "+".join(map(str, range(65))), "at most 64 numbers"),
        ("fixed:summary=5", "summary is at most stride 4"),
        ("star\n:window=1", "'star\\n'"),
    ],
)
def test_wrong_texts_are_refused(text: str, part: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse(text)
    assert part in str(refused.value).replace("\\\\", "\\")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", [0, -1, MAX_LENGTH + 1])
def test_wrong_lengths_are_refused(length: int) -> None:
    with pytest.raises(BadInput, match="1 to 16384"):
        parse("star").bits(length)
