# SPDX-License-Identifier: Apache-2.0
"""The evaluations in an MLPerf BERT log: time, samples and accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertbench.common.mlperf.events import Event, Events, shown_lines, whole

_SAME_EVALUATION_MS = 1000.0
"""Ranks report one evaluation within this time; two evaluations are further apart."""
_COUNTED = ("eval_accuracy", "tracked_stats", "block_start", "block_stop")
"""Keys whose lines count the run's progress."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, reported by any number of ranks."""

    time_ms: float
    value: float | None
    """None: ranks disagree."""
    samples: int | None
    line: int
    """The last line that has it."""


@dataclass
class Evaluations:
    """The evaluations of a run by time, and their problems."""

    evaluations: list[Evaluation] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    """For a record: seconds since run_start, samples, value; only those that ranks agree on."""
    doubt: list[str] = field(default_factory=list)
    uncounted: str | None = None
    """Why their samples are unknown."""


def groups_of(events: Iterable[Event]) -> list[list[Event]]:
    """Group the events of several ranks that differ only in time and value."""
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
) -> Evaluations:
    """Return those between ``start`` and ``stop`` (milliseconds since 1970; None: unknown)."""
    found = Evaluations()
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
            "epoch_num does not count samples, or the batch size to verify it is missing"
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


def set_back(log: Events, batch: int | None) -> str | None:
    """Return the doubt about a clock that was set back while the run was logged, or None.

    Order in the file alone proves nothing: ranks' logs are joined, and evaluations beside training
    are written late, with the time of their weights. A line that follows in the file and in
    progress, but not in time, does not count.
    """
    series = [log.of(key) for key in _COUNTED]
    both = series[0] + series[1]
    counts = [count for event in both if (count := count_of(event)) is not None]
    if are_samples(sorted(counts), batch):  # of one unit, so that their lines can be compared
        series.append(both)
    for events in series:
        latest: Event | None = None
        for event in sorted(events, key=lambda event: event.line):
            if latest is not None and _went_back(latest, event, strictly=True):
                return _dated(latest, event)
            if latest is None or event.time_ms > latest.time_ms:
                latest = event
    starts, stops = log.of("run_start")[:1], log.of("run_stop")[-1:]
    for event in log.of("eval_accuracy"):
        pairs = [(start, event) for start in starts] + [(event, stop) for stop in stops]
        for before, after in pairs:
            if _went_back(before, after, strictly=False):
                return _dated(before, after)
    return None


def _went_back(before: Event, after: Event, *, strictly: bool) -> bool:
    """Return whether ``after`` follows in the file and in progress, but is dated earlier.

    Unless ``strictly``, progress counts only where both lines have it.
    """
    if after.line <= before.line or before.time_ms - after.time_ms <= _SAME_EVALUATION_MS:
        return False
    first, second = count_of(before), count_of(after)
    if first is None or second is None:
        return not strictly
    return first < second or (first == second and not strictly)


def _dated(before: Event, after: Event) -> str:
    seconds = (before.time_ms - after.time_ms) / 1e3
    return (
        f"the clock was set back: {after.key} in line {after.line} is dated {seconds:.0f} s before "
        f"{before.key} in line {before.line}"
    )


def hidden_after(log: Events, last: Evaluation, cut_off: bool) -> int | None:
    """Return the damaged line that may be an evaluation after ``last``, or None.

    In a log that was ``cut_off``, only a damaged line with the key of an evaluation counts.
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
    """Return an event's progress in samples or epochs (see ``are_samples``)."""
    return whole(event.metadata.get("samples_count", event.metadata.get("epoch_num")))


def are_samples(counts: Sequence[int | None], batch: int | None) -> bool:
    """Return whether the counts of evaluations are samples.

    Rounds from 2.0 on log samples as epoch_num, earlier ones epochs. An epoch is 156 million
    samples, so counts that reach the batch size and never decrease are samples. They need not be
    multiples of it: packed batches vary.
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
