# SPDX-License-Identifier: Apache-2.0
"""Derive times, samples, accuracy and status of a run from the events of its MLPerf BERT log.

Sources: mlperf_logging, compliance_checker/training_*/{common,closed_bert,open_bert}.yaml for keys
and targets; published logs of rounds 1.0 to 5.0 for their actual use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.exchange.imported_evaluations import (
    Evaluation,
    are_samples,
    count_of,
    evaluations_of,
    groups_of,
    hidden_after,
    set_back,
)
from bertbench.common.files import shown
from bertbench.common.measure.metric import SHARED
from bertbench.common.mlperf.events import LARGEST, Events, shown_lines, shown_values, whole

_ROUNDS = ("1.0", "1.1", "2.0", "2.1", "3.0", "3.1", "4.0", "4.1", "5.0")
_RANKS_APART_MS = 60_000.0
_FIRST_MS, _LAST_MS = 1_483_228_800_000.0, 4_102_444_800_000.0
"""2017, before MLPerf, and 2100: a time outside does not count milliseconds since 1970."""
_FACTS = (
    "submission_benchmark", "submission_org", "submission_division", "submission_status",
    "submission_platform", "gradient_accumulation_steps", "d_batch_size", "eval_samples",
    "opt_base_learning_rate", "opt_lamb_beta_1", "opt_lamb_beta_2", "opt_lamb_weight_decay_rate",
    "opt_epsilon", "opt_lamb_epsilon", "opt_learning_rate_training_steps",
    "opt_learning_rate_warmup_steps", "num_warmup_steps", "start_warmup_step",
    "max_predictions_per_seq",
)  # fmt: skip


@dataclass
class ImportedRun:
    """A row of schema/published-1.json; ``day_ms`` is its start, if dated."""

    benchmark: str = "unknown"
    division: str | None = None
    seed: int | None = None
    batch: int | None = None
    sequence_length: int | None = None
    samples: int | None = None
    status: str = "unknown"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    doubt: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    day_ms: float | None = 0.0


def read_run(log: Events, mlperf_round: str | None, name: str) -> ImportedRun:
    """Return the run of a log; raise BadInput unless it is one BERT training run.

    ``name`` is the file's name, for messages.
    """
    run = ImportedRun(day_ms=log.events[0].time_ms)
    _settings(log, run, name)
    start, stop = _bounds(log, run, name)
    found = evaluations_of(log, run.batch, start, stop)
    evaluations, run.evaluations = found.evaluations, found.curve
    run.doubt += found.doubt
    if found.uncounted:
        run.missing["evaluation_samples"] = found.uncounted
    if (odd := _odd_clock(log)) is not None:
        run.doubt.append(f"{odd}; such times and durations are left out")
    if (odd := _odd_clock(log, start, stop)) is not None:
        run.day_ms = None
        run.evaluations = [e | {"seconds": None} for e in run.evaluations]
    run.status = _status(log, run)
    if (back := set_back(log, run.batch)) is not None:
        odd = odd or back
        run.doubt.append(f"{back}; durations, samples and the last evaluation are left out")
        run.evaluations, run.missing["samples"] = [], back
    else:
        run.samples = _samples(log, run, evaluations)
    _quality(log, run, evaluations, mlperf_round, back)
    _metrics(log, run, start, stop, odd)
    if log.damaged:
        lines = ", ".join(str(damaged.line) for damaged in log.damaged[:5])
        more = ", ..." if len(log.damaged) > 5 else ""
        run.doubt.append(f"{len(log.damaged)} MLPerf lines are cut or damaged (line {lines}{more})")
    run.facts["in_order_of_time"] = log.ordered
    run.facts["starts_and_stops_typed_wrongly"] = sum(event.odd_type for event in log.events)
    return run


def _settings(log: Events, run: ImportedRun, name: str) -> None:
    keys = {event.key for event in log.events}
    if any(key.startswith("loadgen") for key in keys):
        raise BadInput(f"{name} is a LoadGen (inference) log: give a training log")
    for key in _FACTS:
        value, why = _single(log, key)
        if isinstance(value, str):
            run.facts[key] = shown(value)
        elif isinstance(value, (int, float)) and abs(value) < LARGEST:
            run.facts[key] = value
        elif key in keys and why:
            run.missing[key] = why
    names = {e.value for e in log.of("submission_benchmark") if isinstance(e.value, str)}
    if names - {"bert"}:
        raise BadInput(f"{name} is a log of {shown(', '.join(sorted(names)))}, not of BERT")
    if names:
        run.benchmark = "bert_pretraining"
    else:
        run.missing["benchmark"] = log.absent("submission_benchmark")
    division = run.facts.get("submission_division")
    if division in ("closed", "open"):
        run.division = str(division)
    else:
        run.missing["division"] = log.absent("submission_division")
    for attribute, key in (
        ("batch", "global_batch_size"),
        ("seed", "seed"),
        ("sequence_length", "max_sequence_length"),
    ):
        value, why = _single(log, key)
        count = whole(value)
        if count is not None and (count > 0 or attribute == "seed"):
            setattr(run, attribute, count)
        else:
            run.missing[attribute] = why or f"{key} is {shown(value, 40)}, not a count"


def _bounds(log: Events, run: ImportedRun, name: str) -> tuple[float | None, float | None]:
    """Return the first run_start and the last run_stop, in milliseconds since 1970.

    Every rank may write them, but at one time and without an evaluation between; raises BadInput
    for several runs.
    """
    starts, stops = ([e.time_ms for e in log.of(key)] for key in ("run_start", "run_stop"))
    evaluations = [group[0].time_ms for group in groups_of(log.of("eval_accuracy"))]
    for key, times, marks in (
        ("run_start", starts, [*evaluations, *stops]),
        ("run_stop", stops, evaluations),
    ):
        if times and (
            times[-1] - times[0] > _RANKS_APART_MS
            or any(times[0] < mark < times[-1] for mark in marks)
        ):
            raise BadInput(
                f"{name} contains several runs, or a restarted one: {key} is in lines "
                f"{shown_lines(log.of(key))}, too far apart for one run; split the file"
            )
    for key, times in (("run_start", starts), ("run_stop", stops)):
        if len(times) > 1:
            which = "first" if key == "run_start" else "last"
            run.doubt.append(
                f"{key} occurs {len(times)} times within {times[-1] - times[0]:.0f} ms; the "
                f"{which} counts"
            )
    if starts:
        run.day_ms = starts[0]
    return starts[0] if starts else None, stops[-1] if stops else None


def _odd_clock(log: Events, *used: float | None) -> str | None:
    """Return the doubt about times that are no dates of an MLPerf run, or of those ``used``."""
    times = [time for time in used if time is not None] or [e.time_ms for e in log.events]
    wrong = [time for time in times if not _FIRST_MS < time < _LAST_MS]
    if not wrong:
        return None
    unit = "seconds" if _FIRST_MS < wrong[0] * 1e3 < _LAST_MS else "another unit, or no set clock"
    return f"time_ms is {wrong[0]:.0f}: not milliseconds since 1970 ({unit}?)"


def _status(log: Events, run: ImportedRun) -> str:
    stops = log.of("run_stop")
    if not stops:
        run.missing["status"] = log.absent("run_stop") + ": the run, or its log, was cut off"
        return "no_run_stop"
    found = sorted({str(stop.metadata["status"]) for stop in stops if "status" in stop.metadata})
    if found in (["success"], ["aborted"]):
        return found[0]
    words = f"the status {shown(', '.join(found))}" if found else "no status"
    run.missing["status"] = f"run_stop has {words}"
    return "unknown"


def _samples(log: Events, run: ImportedRun, evaluations: list[Evaluation]) -> int | None:
    """Return the sequences trained. ``train_samples`` logged before training ended is a plan."""
    events = log.of("train_samples")
    last = evaluations[-1] if evaluations else None
    after = [event for event in events if last is not None and event.time_ms >= last.time_ms]
    counts = {whole(event.value) for event in after}
    ends = {count_of(stop) for stop in log.of("run_stop")}
    if len(counts) == 1 and None not in counts:
        found, source = counts.pop(), "train_samples"
    elif counts:
        run.missing["samples"] = f"train_samples is {shown_values(after)}: no single count"
        return None
    elif len(ends) == 1 and are_samples([*(e.samples for e in evaluations), *ends], run.batch):
        found, source = ends.pop(), "run_stop"
    else:
        why = log.absent("train_samples")
        if events:
            why = f"train_samples ({shown_values(events)}) was logged before training ended: a plan"
        if last is not None and last.samples is not None:
            why += f"; {last.samples} at the last evaluation"
        run.missing["samples"] = why
        return None
    if found is not None and last is not None and (last.samples or 0) > found:
        run.missing["samples"] = (
            f"{source} is {found}, fewer than the {last.samples} of the last evaluation"
        )
        return None
    run.facts["samples_from"] = source
    return found


def _quality(
    log: Events,
    run: ImportedRun,
    evaluations: list[Evaluation],
    mlperf_round: str | None,
    back: str | None,
) -> None:
    """Set the accuracy of the last evaluation; ``back`` is why it is not known which that is."""
    known = run.benchmark != "unknown"
    evaluations = evaluations if back is None else []
    value = evaluations[-1].value if evaluations else None
    if back is not None:
        run.missing["accuracy"] = back
    elif not evaluations:
        run.missing["accuracy"] = log.absent("eval_accuracy", "no evaluation of the run")
    elif value is None:
        run.missing["accuracy"] = "ranks disagree about the last evaluation"
    elif hidden := hidden_after(log, evaluations[-1], run.status == "no_run_stop"):
        run.missing["accuracy"] = (
            f"line {hidden} is cut or damaged, and may be a later evaluation than the last "
            f"readable one ({value})"
        )
        value = None
    target = _target(log, run, mlperf_round)
    reached = None if value is None or target is None else value >= target
    run.quality = {
        "metric": "mlm_accuracy" if known else "eval_accuracy",
        "value": value,
        "target": target,
        "reached": reached,
    }
    if evaluations and evaluations[-1].samples:
        run.quality["samples"] = evaluations[-1].samples
    if run.status == "success" and reached is False:
        run.doubt.append(f"says success, but its last evaluation is {value}, below {target}")
    if run.status == "aborted" and reached:
        run.doubt.append(f"says aborted, but its last evaluation is {value}, not below {target}")


def _target(log: Events, run: ImportedRun, mlperf_round: str | None) -> float | None:
    """Return the target of the log's commands, else the closed division's in that round."""
    if len(log.targets) == 1:
        run.facts["target_from"] = "target_mlm_accuracy in the log"
        return next(iter(log.targets))
    if log.targets:
        targets = ", ".join(f"{target:g}" for target in sorted(log.targets))
        run.missing["target"] = f"target_mlm_accuracy is {targets} in the log"
        return None
    if run.division != "closed" or mlperf_round is None or run.benchmark == "unknown":
        run.missing["target"] = (
            "not in the log, and MLPerf's rules define it only for closed BERT runs of known rounds"
        )
        return None
    if mlperf_round in _ROUNDS:
        target = 0.72
    elif mlperf_round == "0.7" and run.batch:
        target = 0.712 if run.batch < 8192 else 0.706
    else:
        run.missing["target"] = f"not in the log, and the rule of round {mlperf_round} is unknown"
        return None
    run.facts["target_from"] = f"MLPerf's rules, closed division, round {mlperf_round}"
    return target


def _continued(log: Events) -> str | None:
    """Return why a log's run is not one whole run; None if it is."""
    for event in log.events:
        if event.key == "resumed":
            return f"the run was resumed (line {event.line}): its time holds a pause"
        if event.key == "run_start" and event.metadata.get("samples_before"):
            return "the run continues another: its time does not cover all its samples"
    return None


def _metrics(
    log: Events, run: ImportedRun, start: float | None, stop: float | None, odd: str | None
) -> None:
    def add(name: str, value: float, definition: str, unit: str = "", direction: str = "") -> None:
        shared = SHARED.get(name)
        run.metrics[name] = {
            "value": value,
            "unit": shared.unit if shared else unit,
            "direction": shared.direction if shared else direction,
            "definition": definition,
        }

    begins, ends = ([e.time_ms for e in log.of(key)] for key in ("init_start", "init_stop"))
    begun = odd is None and begins and ends and ends[-1] >= begins[0]
    if begun and (start is None or ends[-1] <= start):
        add("init_s", _seconds(begins[0], ends[-1]), "first init_start to init_stop")
    rate = "sequences_per_second_e2e"
    absent = odd
    if start is None or stop is None:
        absent = " and ".join(
            log.absent(key)
            for key, time in (("run_start", start), ("run_stop", stop))
            if time is None
        )
    elif stop <= start:
        absent = "run_stop is not after run_start: the clocks do not agree"
    if absent is not None or start is None or stop is None:
        run.missing.update(dict.fromkeys(("run_time_s", "time_to_target_s", rate), str(absent)))
        return
    seconds = _seconds(start, stop)
    continued = _continued(log)
    if continued is not None:
        run.doubt.append(continued)
    pause = "" if continued is None else "; not of one whole run"
    add("run_time_s", seconds, f"run_start to run_stop{pause}")
    reached = run.status == "success" and run.quality["reached"] is not False
    if continued is not None:
        run.missing["time_to_target_s"] = continued
    elif reached:
        add("time_to_target_s", seconds, "run_start to run_stop of a run that says success")
    else:
        run.missing["time_to_target_s"] = f"the target was not reached ({run.status})"
        if run.status == "unknown":
            run.missing["time_to_target_s"] = run.missing["status"]
    if run.samples is None:
        run.missing[rate] = f"no samples: {run.missing['samples']}"
        return
    if reached:
        definition = "sequences trained by a run that says success"
        add("samples_to_target", run.samples, definition, "sequences", "lower")
    if continued is not None:
        run.missing[rate] = continued
        return
    add(rate, round(run.samples / seconds, 4), "samples / (run_start to run_stop)")


def _seconds(start: float, stop: float) -> float:
    return round((stop - start) / 1e3, 3)


def _single(log: Events, key: str) -> tuple[Any, str | None]:
    """Return a key's value if all its events agree; else None and the reason."""
    values = [event.value for event in log.of(key)]
    if not values:
        return None, log.absent(key)
    if any(value != values[0] for value in values):
        return None, f"{key} is {shown_values(log.of(key))}: no single value"
    if values[0] is None:
        return None, f"{key} has no value"
    return values[0], None
