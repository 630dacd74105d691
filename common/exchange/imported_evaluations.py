# SPDX-License-Identifier: Apache-2.0
"""The evaluations in an MLPerf BERT log: when, after how many samples, with which accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bertbench.common.mlperf.events import Event, Events, shown_lines, whole

_SAME_EVALUATION_MS = 1000.0
"""Ranks report one evaluation within this; two evaluations are further apart."""


@dataclass(frozen=True)
class Evaluation:
    """One, whatever the number of ranks that reported it."""

    time_ms: float
    value: float | None
    """None: ranks disagree."""
    samples: int | None
    line: int
    """The last line that has it."""


@dataclass
class Found:
    """The evaluations of a run in the order of time, and what was wrong with them."""

    evaluations: list[Evaluation] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    """For a record: seconds since run_start, samples, value; without those ranks disagree on."""
    doubt: list[str] = field(default_factory=list)
    uncounted: str | None = None
    """Why their samples are not known."""


def groups_of(events: Iterable[Event]) -> list[list[Event]]:
    """Events that several ranks wrote of one thing: alike but for the moment, and the value."""
    groups: list[list[Event]] = []
    for event in events:
        for group in reversed(groups):
            if event.time_ms - group[0].time_ms > _SAME_EVALUATION_MS:
                groups.append([event])
                break
            if event.metadata == group[0].metadata:
                group.append(event)
                break
        else:
            groups.append([event])
    return groups


def evaluations_of(
    log: Events, batch: int | None, start: float | None, stop: float | None
) -> Found:
    """Those between ``start`` and ``stop`` (milliseconds since 1970; None: not known)."""
    found = Found()
    events = log.of("eval_accuracy")
    usable = [event for event in events if _share(event.value)]
    if len(usable) < len(events):
        odd = len(events) - len(usable)
        found.doubt.append(f"{odd} eval_accuracy lines have no value between 0 and 1")
    groups = groups_of(usable)
    inside = [
        group
        for group in groups
        if (start is None or group[0].time_ms >= start)
        and (stop is None or group[0].time_ms <= stop)
    ]
    if outside := len(groups) - len(inside):
        found.doubt.append(f"{outside} evaluations before run_start or after run_stop are left out")
    counts = [count_of(group[0]) for group in inside]
    if inside and not are_samples(counts, batch):
        counts = [None] * len(counts)
        found.uncounted = (
            "epoch_num does not count samples here, or the batch to tell it by is missing"
        )
    for group, samples in zip(inside, counts, strict=True):
        time = group[0].time_ms
        value = group[0].value if len({event.value for event in group}) == 1 else None
        found.evaluations.append(
            Evaluation(time, value, samples, max(event.line for event in group))
        )
        if value is None:
            lines = shown_lines(group)
            found.doubt.append(f"ranks disagree about an evaluation (lines {lines}): left out")
        else:
            seconds = None if start is None else round((time - start) / 1e3, 3)
            found.curve.append({"seconds": seconds, "samples": samples, "value": value})
    return found


def hidden_after(log: Events, last: Evaluation, cut_off: bool) -> int | None:
    """The line of damage that may be an evaluation later than ``last``; None: there is none.

    In a log that was ``cut_off`` what follows is lost anyway: there only a damaged line that shows
    itself to be an evaluation counts.
    """
    for damaged in log.damaged:
        if damaged.key != "eval_accuracy" and (damaged.key is not None or cut_off):
            continue
        if damaged.time_ms is None:
            later = damaged.line > last.line
        else:
            later = damaged.time_ms > last.time_ms + _SAME_EVALUATION_MS
        if later:
            return damaged.line
    return None


def count_of(event: Event) -> int | None:
    """What an event says of how far training was: samples, or epochs (``are_samples``)."""
    return whole(event.metadata.get("samples_count", event.metadata.get("epoch_num")))


def are_samples(counts: list[int | None], batch: int | None) -> bool:
    """Whether the counts of evaluations are samples.

    Rounds from 2.0 on log samples as epoch_num, earlier ones epochs. An epoch is 156 million
    samples, so that counts which reach the batch size and never fall can be no epochs. They need
    not be multiples of it: packed batches vary.
    """
    known = [count for count in counts if count is not None]
    return (
        batch is not None
        and len(known) == len(counts) > 0
        and known == sorted(known)
        and all(count == 0 or count >= batch > 1 for count in known)
        and known[-1] > 0
    )


def _share(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= 1
