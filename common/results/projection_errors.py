# SPDX-License-Identifier: Apache-2.0
"""The projection's errors: published systems, projected by fits that have not seen them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.results.projection import (
    TABLE,
    Fit,
    System,
    base_of,
    fit,
    pairs,
    project,
    published_systems,
)
from bertbench.common.results.statistics import median

RATIOS = ((1, 2), (2, 8), (8, 64), (64, math.inf))
"""Ranges of devices / devices of the smaller system: above the first, up to the second."""
COVERED = (0.1, 0.9)
"""The interval's quantiles of published / projected time."""


@dataclass(frozen=True)
class LeftOut:
    """A published system, projected by a fit that has not seen it: projected / published."""

    system: System
    ratio: float
    """Devices / devices of its family's smallest system."""
    time: float
    samples: float
    rate: float


LEFT_OUT: dict[str, Callable[[System], tuple[str, ...]]] = {
    "family": lambda system: system.family,
    "submitter": lambda system: (system.submitter,),
}
"""What a fit has not seen of a left-out system."""


@functools.cache
def leave_out(by: str, own_batch: bool = True, path: Path = TABLE) -> tuple[LeftOut, ...]:
    """Project each larger system from its family's smallest by a fit without its group.

    ``by`` is a key of LEFT_OUT: the family, or all systems of the submitter. ``own_batch``: at the
    system's batch, else at the one that ``project`` chooses. A batch outside the others' is
    refused as for users, and so has no error.
    """
    every, group = published_systems(path), LEFT_OUT[by]
    fits: dict[tuple[str, ...], Fit] = {}
    found = []
    for small, large in pairs(every):
        key = group(large)
        if key not in fits:
            fits[key] = fit([each for each in every if group(each[0]) != key])
        network = fits[key].network(large.submitter, large.device)
        try:
            row = project(
                base_of(small), large.devices, fits[key], network,
                large.batch if own_batch else None,
            )  # fmt: skip
        except (BadInput, Unsupported):
            continue
        assert row.time_s is not None and row.samples is not None
        found.append(LeftOut(
            large, large.devices / small.devices, row.time_s / large.time_s,
            row.samples / large.samples, row.sequences_per_second / large.rate,
        ))  # fmt: skip
    return tuple(found)


def alike(rows: Iterable[LeftOut], ratio: float) -> list[LeftOut]:
    """Return the rows in the range of RATIOS that has ``ratio``."""
    low, high = next(r for r in RATIOS if r[0] < ratio <= r[1])
    return [row for row in rows if low < row.ratio <= high]


def interval(time_s: float, rows: Sequence[LeftOut]) -> tuple[float, float]:
    """Return the time times the COVERED quantiles of published / projected."""
    low, high = np.quantile([1 / row.time for row in rows], COVERED)
    return float(time_s * low), float(time_s * high)


def errors(rows: Sequence[LeftOut], figure: str = "time") -> dict[str, Any]:
    """Return median and worst of |projected / published - 1|, and the share within 10 %."""
    values = [abs(getattr(row, figure) - 1) for row in rows]
    return {
        "systems": len(values),
        "median": median(values),
        "worst": max(values),
        "within_10_percent": sum(value <= 0.1 for value in values) / len(values),
    }


def error_table() -> Iterator[dict[str, Any]]:
    """Yield the errors by group that is left out, batch and ratio of sizes."""
    for by in LEFT_OUT:
        for own_batch in (True, False):
            found = leave_out(by, own_batch)
            # At another batch samples and rate differ for a reason.
            figures = ("time", "samples", "rate") if own_batch else ("time",)
            for low, high in (*RATIOS, (1, math.inf)):
                near = [row for row in found if low < row.ratio <= high]
                yield {
                    "left_out_by": by,
                    "batch": "given" if own_batch else "chosen",
                    "ratio_above": low,
                    "ratio_to": high if math.isfinite(high) else None,
                    **{name: errors(near, name) for name in figures},
                }
