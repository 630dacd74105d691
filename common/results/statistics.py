# SPDX-License-Identifier: Apache-2.0
"""Statistics over runs in fresh processes: few values, no assumption about how they scatter.

Everything is exact up to ``EXACT`` values in all. Nothing is left out as an outlier. An interval
needs ``ENOUGH`` runs (on each side): with five none of 95 % exists for a median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

ENOUGH = 6
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
EXACT = 120
"""Values of both sides together up to which a p is counted out; beyond it is approximated."""


class Interval(NamedTuple):
    low: float
    high: float
    confidence: float
    """What it really has: at least CONFIDENCE, since the possible ones are few."""


class Ratio(NamedTuple):
    """Of what is right to what is left."""

    estimate: float
    interval: Interval | None


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 or ordered[middle - 1] == ordered[middle]:
        return ordered[middle]
    total = ordered[middle - 1] + ordered[middle]
    return total / 2 if math.isfinite(total) else ordered[middle - 1] / 2 + ordered[middle] / 2


def median_interval(values: Sequence[float]) -> Interval | None:
    """Of the median: from the k-th smallest to the k-th largest value, by the sign test.

    k is the largest for which fewer than k of n values lie on one side with a probability of at
    most (1 - CONFIDENCE) / 2. None for fewer than ENOUGH values.
    """
    n, outside, k = len(values), 0, 0
    if n < ENOUGH:
        return None
    while (more := outside + math.comb(n, k)) <= (1 - CONFIDENCE) / 2 * 2**n:
        outside, k = more, k + 1
    ordered = sorted(values)
    return Interval(ordered[k - 1], ordered[n - k], float(1 - Fraction(2 * outside, 2**n)))


def mann_whitney(left: Sequence[float], right: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney test that neither side tends to larger values.

    The share of all ways to deal the values to two sides of these sizes whose rank sum is at
    least as far from its mean as this one; equal values share their ranks. That counts for 0 and
    1 (reached or not), too.
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
    """The smallest p that sides of these sizes can give."""
    return min(1.0, float(Fraction(2, math.comb(left + right, left))))


def ratio(left: Sequence[float], right: Sequence[float]) -> Ratio | None:
    """right / left: the median of all quotients (Hodges-Lehmann on the logarithms).

    Its interval reaches from the k-th smallest to the k-th largest quotient, where k is the
    largest that the exact Mann-Whitney distribution allows at CONFIDENCE; ties only widen it.
    None where a quotient does not exist: a value is not positive, or beyond floating point.
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
    counts = _rank_sums([2 * rank for rank in range(1, n + m + 1)], n)[n * (n + 1) :: 2]
    ways, outside, k = math.comb(n + m, n), 0, 0  # counts[u]: ways to have U = u without ties
    while (more := outside + counts[k]) <= (1 - CONFIDENCE) / 2 * ways:
        outside, k = more, k + 1
    confidence = float(1 - Fraction(2 * outside, ways))
    return Interval(quotients[k - 1], quotients[len(quotients) - k], confidence)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value; equal ones have the mean of theirs, a whole number so."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for place, value in enumerate(ordered, 1):
        first.setdefault(value, place)
        last[value] = place
    return [first[value] + last[value] for value in values]


def _rank_sums(ranks: Sequence[int], chosen: int) -> list[int]:
    """For each sum, in how many ways ``chosen`` of ``ranks`` add up to it.

    Coefficients of the product of (1 + y x^rank), for y^chosen: polynomials of x, each held in
    one whole number with a field of bits per coefficient.
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
    """The normal approximation, with the variance that the ties leave and half a step's width."""
    total = len(ranks)
    mean = sum(ranks) / total
    variance = n * (total - n) / (total * (total - 1)) * sum((r - mean) ** 2 for r in ranks)
    if not variance:
        return 1.0
    return math.erfc(max(0.0, off / total - 1) / math.sqrt(2 * variance))
