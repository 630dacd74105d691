# SPDX-License-Identifier: Apache-2.0
"""The statistics against counting everything out, and against printed tables."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbench.common.results import statistics
from bertbench.common.results.statistics import (
    Interval,
    mann_whitney,
    median,
    median_interval,
    ratio,
    smallest_p,
)

FEW = st.integers(-3, 3).map(float)
ANY = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


def by_enumeration(left: list[float], right: list[float]) -> float:
    """U by comparing every pair, for every way to deal the values."""
    values = [*left, *right]
    n, everyone = len(left), range(len(left) + len(right))

    def u(chosen: tuple[int, ...]) -> Fraction:
        rest = [i for i in everyone if i not in chosen]
        return sum(
            Fraction((values[i] > values[j]) - (values[i] < values[j]), 2) + Fraction(1, 2)
            for i in chosen
            for j in rest
        )

    middle = Fraction(len(left) * len(right), 2)
    told = abs(u(tuple(range(n))) - middle)
    deals = list(itertools.combinations(everyone, n))
    return float(Fraction(sum(abs(u(deal) - middle) >= told for deal in deals), len(deals)))


@settings(max_examples=120, deadline=None)
@given(
    st.lists(FEW | ANY, min_size=1, max_size=5), st.lists(FEW | ANY, min_size=1, max_size=4)
)  # fmt: skip
def test_mann_whitney_is_what_enumeration_gives(left: list[float], right: list[float]) -> None:
    assert mann_whitney(left, right) == by_enumeration(left, right)


def test_mann_whitney_of_the_largest_sides_that_can_be_enumerated() -> None:
    left, right = [1.0, 2.0, 2.5, 3.0, 3.5, 7.0], [2.2, 2.5, 4.0, 5.0, 6.0, 8.0]
    assert mann_whitney(left, right) == by_enumeration(left, right)


@pytest.mark.parametrize(
    ("sides", "p"), [(3, 0.1), (4, 2 / 70), (5, 2 / 252), (6, 2 / 924), (7, 2 / 3432)]
)
def test_the_smallest_p_of_each_size(sides: int, p: float) -> None:
    low, high = [float(v) for v in range(sides)], [float(v) for v in range(100, 100 + sides)]
    assert mann_whitney(low, high) == mann_whitney(high, low) == p == smallest_p(sides, sides)


def test_all_equal_is_no_difference() -> None:
    assert mann_whitney([1.0] * 6, [1.0] * 6) == 1.0
    assert smallest_p(1, 1) == 1.0


def test_reached_or_not() -> None:
    """The hypergeometric distribution, as Fisher's test has it."""
    assert mann_whitney([1.0] * 6, [0.0] * 6) == 2 / 924
    few = 2 * math.comb(6, 4) / math.comb(12, 6) * math.comb(6, 6)  # 6 of 6 against 4 of 6
    assert mann_whitney([1.0] * 6, [1.0] * 4 + [0.0] * 2) == pytest.approx(
        2 * math.comb(10, 6) / math.comb(12, 6)
    )
    assert few < 1


def test_the_approximation_takes_over_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = [float(v) for v in range(0, 60, 2)], [float(v) for v in range(11, 71, 2)]
    exact = mann_whitney(left, right)
    monkeypatch.setattr(statistics, "EXACT", 10)
    assert mann_whitney(left, right) == pytest.approx(exact, rel=0.05)
    assert mann_whitney([1.0] * 10, [1.0] * 10) == 1.0


def test_many_values_take_no_time() -> None:
    left, right = [float(v) for v in range(60)], [float(v) + 0.5 for v in range(60)]
    assert mann_whitney(left, right) > 0.5
    found = ratio([v + 1 for v in left], [v + 1 for v in right])
    assert found and found.interval and found.interval.confidence == pytest.approx(0.95, abs=2e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([4.0, 1.0], 2.5),
        ([3.0, 1.0, 2.0], 2.0),
        ([0.1, 0.1], 0.1),
        ([1.7e308, 1.5e308], 1.6e308),
        ([-1.7e308, 1.7e308], 0.0),
    ],
)
def test_median(values: list[float], expected: float) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(
    ("n", "k", "confidence"),  # any table of the sign test
    [(6, 1, 0.96875), (8, 1, 0.9921875), (9, 2, 0.9609375), (12, 3, 0.96142578125), (17, 5, None)],
)
def test_interval_of_a_median(n: int, k: int, confidence: float | None) -> None:
    interval = median_interval([float(v) for v in range(n, 0, -1)])
    assert interval is not None and (interval.low, interval.high) == (k, n + 1 - k)
    assert confidence is None or interval.confidence == confidence
    assert median_interval([1.0] * 5) is None


def test_ratio_to_the_digit() -> None:
    assert ratio([4.0], [5.0]) == (1.25, None)
    assert ratio([1.0, 2.0], [4.0, 16.0]) == (math.sqrt(4.0) * math.sqrt(8.0), None)
    left, right = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    found = ratio(left, right)
    # 36 quotients 2^-4 .. 2^6, one more or fewer for each power: 1 2 3 4 5 6 5 4 3 2 1.
    # U <= 5 has 19 of 924 ways (Mann and Whitney's table), so k = 6: 1 + 2 + 3.
    assert found == (2.0, Interval(2.0**-2, 2.0**4, 1 - 38 / 924))


def test_the_interval_ends_where_the_test_would() -> None:
    """It holds the factors by which one side can be scaled without becoming significant."""
    left = [1.00, 1.03, 0.97, 1.07, 0.94, 1.011]
    right = [1.25, 1.16, 1.31, 1.22, 1.19, 1.40]
    found = ratio(left, right)
    assert found and found.interval

    def p(factor: float) -> float:
        return mann_whitney([v * factor for v in left], right)

    assert p(found.interval.low * 0.9999) <= 0.05 < p(found.interval.low * 1.0001)
    assert p(found.interval.high * 1.0001) <= 0.05 < p(found.interval.high * 0.9999)


@pytest.mark.parametrize(
    ("left", "right"),
    [([0.0], [1.0]), ([1.0], [-1.0]), ([1e-300], [1e300]), ([1e300], [1e-300]), ([], [1.0])],
)
def test_no_ratio_without_quotients(left: list[float], right: list[float]) -> None:
    assert ratio(left, right) is None


@given(st.lists(POSITIVE, min_size=1, max_size=8), st.lists(POSITIVE, min_size=1, max_size=8))
def test_a_ratio_is_a_number_inside_its_interval(left: list[float], right: list[float]) -> None:
    found = ratio(left, right)
    if found is None:
        return
    assert math.isfinite(found.estimate) and found.estimate >= 0
    assert (found.interval is None) == (min(len(left), len(right)) < 6)
    if found.interval is not None:
        low, high, confidence = found.interval
        assert low <= found.estimate * (1 + 1e-12) and found.estimate <= high * (1 + 1e-12)
        assert 0.95 <= confidence <= 1


@given(st.lists(ANY, min_size=1, max_size=20))
def test_a_median_lies_inside(values: list[float]) -> None:
    assert min(values) <= median(values) <= max(values)
    interval = median_interval(values)
    if interval is not None:
        assert interval.low <= median(values) <= interval.high


@settings(deadline=None, max_examples=30)
@given(st.lists(POSITIVE, min_size=6, max_size=40))
def test_the_interval_of_a_median_is_scipys(values: list[float]) -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy comes with mlperf-logging")
    found = median_interval(values)
    theirs = scipy.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert found is not None and found[:2] == (theirs.low, theirs.high)


@settings(deadline=None, max_examples=30)
@given(st.permutations([0.5 * 1.1**i for i in range(17)]), st.integers(1, 16))
def test_p_without_ties_is_scipys(values: list[float], n: int) -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy comes with mlperf-logging")
    theirs = scipy.mannwhitneyu(values[:n], values[n:], method="exact").pvalue
    assert mann_whitney(values[:n], values[n:]) == pytest.approx(theirs, rel=1e-12)
