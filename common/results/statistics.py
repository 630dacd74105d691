# SPDX-License-Identifier: Apache-2.0
"""Statistics over runs in new processes: few values, without assumptions on their distribution.

All results are exact up to ``EXACT`` values, and outliers stay in. An interval needs ``ENOUGH``
runs on each side: five give no 95 % interval of a median. docs/architecture.md says why scipy does
not compute them; tests compare with it.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

ENOUGH = 6
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
EXACT = 120
"""Most values of both sides together with an exact p; beyond, it is approximated."""


class Interval(NamedTuple):
    low: float
    high: float
    confidence: float
    """The exact coverage: at least CONFIDENCE."""


class Ratio(NamedTuple):
    """The ratio right / left."""

    estimate: float
    interval: Interval | None


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the middle two."""
    low, high = statistics.median_low(values), statistics.median_high(values)
    if low == high:
        return low
    return (low + high) / 2 if math.isfinite(low + high) else low / 2 + high / 2


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the median's interval: k-th smallest to k-th largest value, by the sign test.

    k is the largest for which fewer than k of n values lie on one side with a probability of at
    most (1 - CONFIDENCE) / 2. None for fewer than ENOUGH values.
    """
    n = len(values)
    if n < ENOUGH:
        return None
    k, confidence = _sign_test(n)
    ordered = sorted(values)
    return Interval(ordered[k - 1], ordered[n - k], confidence)


@functools.cache
def _sign_test(n: int) -> tuple[int, float]:
    """Return ``median_interval``'s k for n values, and its coverage."""
    outside, k = 0, 0
    while (more := outside + math.comb(n, k)) <= (1 - CONFIDENCE) / 2 * 2**n:
        outside, k = more, k + 1
    return k, float(1 - Fraction(2 * outside, 2**n))


def mann_whitney(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney test that neither side tends to larger values.

    p is the share of all assignments of the values to two sides of these sizes whose rank sum is
    at least as far from its mean as this one. Equal values share their ranks, also 0 and 1
    (reached or not). Raises ValueError for a side without values.
    """
    if not left or not right:
        raise ValueError("a side without values")
    n, total = len(left), len(left) + len(right)
    ranks = _doubled_ranks([*left, *right])
    off = abs(sum(ranks[:n]) * total - n * sum(ranks))
    if total > EXACT:
        return _approximate(ranks, n, off)
    ways, far = math.comb(total, n), 0
    for rank_sum, count in enumerate(_rank_sums(ranks, n)):
        if count and abs(rank_sum * total - n * sum(ranks)) >= off:
            far += count
    return float(Fraction(far, ways))


def smallest_p(left: int, right: int) -> float:
    """Return the smallest possible p of sides of these sizes."""
    return min(1.0, float(Fraction(2, math.comb(left + right, left))))


def ratio(left: Sequence[float], right: Sequence[float]) -> Ratio | None:
    """Return right / left: the median of all quotients (Hodges-Lehmann on the logarithms).

    The interval reaches from the k-th smallest to the k-th largest quotient, where k is the
    largest that the exact Mann-Whitney distribution allows at CONFIDENCE; ties only widen it.
    None if a value is not positive, or a quotient is beyond floating point.
    """
    if not left or not right or min(*left, *right) <= 0:
        return None
    quotients = sorted(r / e for r in right for e in left)
    if quotients[0] <= 0 or math.isinf(quotients[-1]):
        return None
    low, high = quotients[(len(quotients) - 1) // 2], quotients[len(quotients) // 2]
    estimate = low if low == high else math.sqrt(low) * math.sqrt(high)
    return Ratio(estimate, _ratio_interval(quotients, len(left), len(right)))


def _ratio_interval(quotients: Sequence[float], n: int, m: int) -> Interval | None:
    if min(n, m) < ENOUGH or n + m > EXACT:
        return None
    k, confidence = _rank_test(n, m)
    return Interval(quotients[k - 1], quotients[len(quotients) - k], confidence)


@functools.cache
def _rank_test(n: int, m: int) -> tuple[int, float]:
    """Return ``ratio``'s k for sides of n and m values, and its coverage."""
    counts = _rank_sums([2 * rank for rank in range(1, n + m + 1)], n)[n * (n + 1) :: 2]
    ways, outside, k = math.comb(n + m, n), 0, 0  # counts[u]: ways to have U = u without ties
    while (more := outside + counts[k]) <= (1 - CONFIDENCE) / 2 * ways:
        outside, k = more, k + 1
    return k, float(1 - Fraction(2 * outside, ways))


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each value; equal values have their mean rank, so it is whole."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for place, value in enumerate(ordered, 1):
        first.setdefault(value, place)
        last[value] = place
    return [first[value] + last[value] for value in values]


def _rank_sums(ranks: Sequence[int], chosen: int) -> list[int]:
    """Return for each sum the number of ways that ``chosen`` of ``ranks`` add up to it.

    These are the coefficients at y^chosen of the product of (1 + y x^rank). Each polynomial of x
    is one whole number with a field of bits per coefficient.
    """
    bits = len(ranks) + 1
    polynomials = [1] + [0] * chosen
    for done, rank in enumerate(ranks):
        for j in range(min(chosen, done + 1), 0, -1):
            polynomials[j] += polynomials[j - 1] << (bits * rank)
    packed, mask = polynomials[chosen], (1 << bits) - 1
    width = sum(sorted(ranks)[len(ranks) - chosen :]) + 1
    text = packed.to_bytes((bits * width + 15) // 8, "little")
    found = []
    for place in range(0, bits * width, bits):
        piece = int.from_bytes(text[place // 8 : (place + bits) // 8 + 1], "little")
        found.append(piece >> (place % 8) & mask)
    return found


def _approximate(ranks: Sequence[int], n: int, off: int) -> float:
    """Return the normal approximation with the variance of the ties and continuity correction."""
    total = len(ranks)
    mean = sum(ranks) / total
    variance = n * (total - n) / (total * (total - 1)) * sum((r - mean) ** 2 for r in ranks)
    if not variance:
        return 1.0
    return math.erfc(max(0.0, off / total - 1) / math.sqrt(2 * variance))
