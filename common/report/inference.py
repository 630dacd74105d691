# SPDX-License-Identifier: Apache-2.0
"""BERT inference in the report: exported models by scenario, beside the dense FP32 model.

A configuration differs from the dense FP32 one in its weights and precision only: scenario, rules,
system, engine, threads, batches and questions are the same. Source of the marks of F1: MLPerf
Inference's bert-99 and bert-99.9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bertbench.common.mlperf.inference import LARGE, OFFICIAL, PERCENTILE, REFERENCE_F1, SHARES
from bertbench.common.report.groups import Entry, Value, mapping
from bertbench.common.report.prices import Price
from bertbench.common.report.ranking import Figure, Place, places, speed_cell
from bertbench.common.report.tables import (
    EMPTY,
    Cell,
    Table,
    TableRow,
    columns,
    count,
    filled,
    number_cell,
    plain_cell,
    row,
)
from bertbench.common.results.result import Result
from bertbench.common.results.result import number as checked

RATED = ("Offline", "Server")
"""Scenarios whose figure is a rate."""
_RATE, _VALID = "samples_per_second", "result_valid"
_STOPPED = "latency_p{}_early_stopping_s"
_NONE = Cell("-")
_BELOW = "below 99 %"


def apart(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Return the entries of inference, and the others."""
    return [e for e in entries if _inferred(e)], [e for e in entries if not _inferred(e)]


def _inferred(e: Entry) -> bool:
    return e.measured and bool(e.first.exported)


def model(r: Result) -> str | None:
    """Return a run's exported model in a line; None for other runs."""
    if not r.exported:
        return None
    named = {"model_bytes": "bytes", "parameters": "parameters"}
    known = {unit: checked(r.extras.get(name)) for name, unit in named.items()}
    sizes = (f"{value:,} {unit}" for unit, value in known.items() if value is not None)
    return ", ".join(filter(None, (_sparsity(r), r.precision, *sizes)))


def ranked(entries: Sequence[Entry], prices: Mapping[str, Price]) -> list[list[Place]]:
    """Return the places of each workload: one scenario under one set of rules, shape and questions.

    Offline and Server are ranked by samples/s, the streams by the latency that MLPerf takes.
    """
    return places(
        entries, lambda e: (_questions(e), _rules(e), _ranked_by(e)),
        lambda e: _placed(e, entries), prices,
    )  # fmt: skip


def _ranked_by(e: Entry) -> str | None:
    """Return the metric that its scenario is ranked by; None if it has neither."""
    scenario = str(_settings(e)[0].get("scenario"))
    percentile = PERCENTILE.get(scenario)
    streamed = [_STOPPED.format(percentile), f"latency_p{percentile}_s"]
    names = [_RATE] if scenario in RATED else streamed
    return next((name for name in names if e.value(name)), None)


def _placed(e: Entry, entries: Sequence[Entry]) -> Figure | None:
    name = _ranked_by(e)
    value = e.value(name) if name else None
    if value is None:
        return None
    doubts = []
    if _settings(e)[0].get("profile") != OFFICIAL:
        doubts.append("NOT official: no MLPerf result")
    if (share := _share(e, entries)).note == _BELOW:
        doubts.append(f"F1 is {share.text} % of FP32's")
    value = value._replace(unit="samples/s" if name == _RATE else "s")
    return Figure(value, "" if _valid(e) else "INVALID", tuple(doubts))


def ranking(workloads: Sequence[Sequence[Place]]) -> Table:
    """Return a row for each configuration of workloads with at least two."""
    return filled(Table(
        id="inference-ranking",
        title="Ranking of inference",
        intro="One workload is one scenario under one set of rules, with one shape of model and "
        "the same questions. Offline and Server: samples/s; streams: the latency that MLPerf "
        "takes. What LoadGen calls INVALID has no rank. Speed: relative to the fastest.",
        columns=columns(
            "Scenario | # Rank | Device | Engine | Precision | Weights | # Runs | # Samples/s | "
            "# Latency, ms | # Speed | # F1, % | Doubts"
        ),
        rows=[_place(p) for some in workloads if len(some) > 1 for p in some],
    ))  # fmt: skip


def _place(p: Place) -> TableRow:
    e, link, (recipe, impl) = p.entry, p.entry.link(), _settings(p.entry)
    streamed = p.value.unit == "s"
    return row(
        e,
        Cell(str(recipe.get("scenario")), link, str(recipe.get("profile"))),
        Cell(str(p.rank), sort=p.rank) if p.rank else EMPTY,
        Cell(e.device, "", e.first.system_name),
        Cell(f"{impl.get('engine')}, {impl.get('provider')}", "", e.variant),
        Cell(e.precision),
        Cell(_sparsity(e.first)),
        Cell(str(e.made), e.anchor, sort=e.made),
        EMPTY if streamed else _figure(e, p.value),
        _figure(e, p.value, 1e3) if streamed else EMPTY,
        speed_cell(p) if p.rank else EMPTY,
        number_cell(_whole(e.value("f1")), link),
        Cell("; ".join(p.doubts)),
    )


def measured(entries: Sequence[Entry]) -> Table:
    """Return a row for each configuration; columns without a value in any row are left out."""
    return filled(Table(
        id="inference-measured",
        title="BERT inference",
        intro="Exported models asked by MLPerf's LoadGen: medians over the runs that it calls "
        "VALID. Only the official profile makes an MLPerf result. F1 / FP32: of BERT-large under "
        "the official rules the share of MLPerf's FP32 reference, else that of the best dense FP32 "
        "model here of the same shape on the same questions. Speed-up: over the dense FP32 model "
        "here of the same shape with the same scenario, rules, system, engine, threads, batches "
        "and questions, by rate or in the streams by latency. MLPerf's latency is the percentile "
        "with early stopping's margin.",
        columns=columns(
            "System | Engine | Precision | Weights | Scenario | Profile | LoadGen | # Samples/s | "
            "# MLPerf's latency, ms | # Speed-up | # F1, % | # F1 / FP32, % | # Exact match, % | "
            "# p50, ms | # p90, ms | # p99, ms | # Model, bytes | # Parameters | # Power, W | "
            "# Energy, J"
        ),
        rows=[_row(e, entries) for e in entries],
    ))  # fmt: skip


def _row(e: Entry, entries: Sequence[Entry]) -> TableRow:
    r, link, (recipe, impl) = e.first, e.link(), _settings(e)
    scenario, official = str(recipe.get("scenario")), recipe.get("profile") == OFFICIAL
    rated = scenario in RATED
    percentile = PERCENTILE.get(scenario, 0)
    stopped = e.value(_STOPPED.format(percentile))
    batches = f"threads {impl.get('num_threads')}, batch_tokens {impl.get('batch_tokens')}"
    padded = "padded to full length" if impl.get("padded") else ""
    given = impl.get("provider_options")
    options = map(str, given) if isinstance(given, list) else ()
    return row(
        e,
        Cell(r.system_name, link, e.variant),
        Cell(f"{impl.get('engine')}, {impl.get('provider')}", "",
             ", ".join(filter(None, (batches, padded, *options)))),
        Cell(e.precision),
        Cell(_sparsity(r), "", str(mapping(r.manifest.get("inputs")).get("checkpoint"))[:8]),
        Cell(scenario),
        Cell("official") if official else Cell("NOT official", note="no MLPerf result"),
        _validity(e),
        _figure(e, e.value(_RATE) if rated else None),
        _figure(e, stopped, 1e3, f"p{percentile}"),
        _speed_up(e, entries),
        number_cell(_whole(e.value("f1")), link),
        _share(e, entries),
        number_cell(_whole(e.value("exact_match")), link),
        *(_figure(e, e.value(f"latency_p{p}_s"), 1e3) for p in (50, 90, 99)),
        *(_amount(r.extras.get(name)) for name in ("model_bytes", "parameters")),
        *(number_cell(e.value(name), link) for name in ("power_w", "energy_j")),
    )  # fmt: skip


def _amount(value: Any) -> Cell:
    known = checked(value)
    return EMPTY if known is None else Cell(f"{known:,}", sort=known)


def _settings(e: Entry) -> tuple[Any, Any]:
    """Return recipe and implementation."""
    recipe, impl = (mapping(e.first.config.get(part)) for part in ("recipe", "impl"))
    return recipe, impl


def _sparsity(r: Result) -> str:
    return str(r.exported.get("weight_sparsity") or "dense")


def _whole(value: Value | None) -> Value | None:
    """Return the value of a score, which no latency makes wrong."""
    return value and value._replace(missed=False)


def _valid(e: Entry) -> int:
    """Return the number of runs that LoadGen calls VALID."""
    return sum(r.value(_VALID) == 1 for r in e.results)


def _validity(e: Entry) -> Cell:
    known = sum(r.value(_VALID) is not None for r in e.results)
    if not known:
        return Cell("", note="accuracy only")
    some = f"{_valid(e)} of {known} VALID" if known > 1 else ""
    return Cell("VALID" if _valid(e) else "INVALID", e.link(), some)


def _figure(e: Entry, value: Value | None, scale: float = 1, note: str = "") -> Cell:
    """Return a cell of a measured figure, with a note where LoadGen calls it INVALID."""
    if value is None:
        return EMPTY
    invalid = "" if _valid(e) else "INVALID"
    value = value._replace(missed=value.missed and not invalid)
    cell = number_cell(value, e.link(), scale=scale)
    return cell._replace(note=", ".join(filter(None, (note, cell.note, invalid))))


def _dense(e: Entry) -> bool:
    return e.first.precision == "fp32" and e.first.exported.get("weight_sparsity") is None


def _alike(e: Entry, entries: Sequence[Entry], key: Callable[[Entry], str]) -> list[Entry]:
    """Return the dense FP32 entries with the same ``key``: ``e`` if it is one, then its code's."""
    found = [other for other in entries if _dense(other) and key(other) == key(e)]
    code = e.first.code_hash
    return sorted(found, key=lambda other: (other is not e, other.first.code_hash != code))


def _questions(e: Entry) -> str:
    """Return what two models' scores must have in common: shape and questions."""
    recipe, _ = _settings(e)
    free = ("scenario", "profile", "min_duration_ms", "min_query_count", "latency_bound_ms",
            "target_f1")  # fmt: skip
    kept = {k: v for k, v in recipe.items() if k not in free}
    return json.dumps([e.first.data_hash, e.first.exported.get("model"), kept], sort_keys=True)


def _circumstances(e: Entry) -> str:
    """Return what two models' speeds must have in common besides."""
    where = [e.first.system_name, e.device, _rules(e), _settings(e)[1]]
    return json.dumps([_questions(e), where], sort_keys=True)


def _rules(e: Entry) -> tuple[Any, ...]:
    recipe, _ = _settings(e)
    return tuple(recipe.get(name) for name in ("scenario", "profile", "latency_bound_ms"))


def _speed_up(e: Entry, entries: Sequence[Entry]) -> Cell:
    """Return the ratio of a VALID figure to the dense FP32 entry's."""
    scenario = str(_settings(e)[0].get("scenario"))
    percentile = PERCENTILE.get(scenario)
    names = [_STOPPED.format(percentile), f"latency_p{percentile}_s"]
    for base in _alike(e, entries, _circumstances) if _valid(e) else ():
        for name in [_RATE] if scenario in RATED else names:
            own, dense = (x.value(name) if _valid(x) else None for x in (e, base))
            if own is not None and dense is not None:
                ratio = own.median / dense.median
                faster = ratio if name == _RATE else 1 / ratio
                return plain_cell(faster, base.link(), "itself" if base is e else "", 3)
    return _NONE


def _share(e: Entry, entries: Sequence[Entry]) -> Cell:
    """Return F1 as a share of the FP32 model's, in percent, and MLPerf's mark that it reaches."""
    own = e.value("f1")
    if own is None:
        return _NONE
    shape = mapping(e.first.exported.get("model"))
    whole, link = REFERENCE_F1, ""
    if _settings(e)[0].get("profile") != OFFICIAL or not LARGE.items() <= shape.items():
        known = [(v.median, base.link()) for base in _alike(e, entries, _questions)
                 if (v := base.value("f1")) is not None]  # fmt: skip
        if not known or not max(known)[0]:
            return _NONE
        whole, link = max(known)
    share = own.median / whole
    marks = [f"{100 * mark:g} % reached" for mark in SHARES.values() if share >= mark]
    return plain_cell(100 * share, link, marks[-1] if marks else _BELOW)


def published(entries: Sequence[Entry]) -> Table:
    """Return MLPerf's figures, and of the measured ones BERT-large's under the official rules."""
    rows = []
    for e in entries:
        if "inference" not in e.benchmark:
            continue
        figures = [e.value(f"{name}{each}") for name in _MLPERF
                   for each in ("", "_per_device")]  # fmt: skip
        stream = e.value("single_stream_p90_s")
        if e.measured:
            figures, stream = _official(e)
        if not any((*figures, stream)):
            continue
        cells = (
            Cell(e.first.system_name, e.link(), e.workload),
            count(e.devices),
            Cell(e.precision),
            *(number_cell(value, e.link()) for value in figures),
            number_cell(e.quality("f1"), e.link()),
            number_cell(stream, e.link(), scale=1e3),
        )
        rows.append(row(e, *cells))
    return Table(
        id="inference",
        title="In the format of MLPerf Inference's results",
        intro="Published figures of BERT-large on SQuAD: samples per second of the system and of "
        "one device, F1, and the 90th percentile of SingleStream's latency. Rows measured here are "
        "those of BERT-large under the official rules; BERT inference, above, has all.",
        columns=columns(
            "System | # Devices | Precision | # Samples/s | # per device | # Server, samples/s | "
            "# per device | # F1 | # p90, ms"
        ),
        rows=rows,
    )


_MLPERF = ("offline_samples_per_second", "server_samples_per_second")


def _official(e: Entry) -> tuple[list[Value | None], Value | None]:
    """Return a measured entry's rates as in _MLPERF and its latency; of others than official none.

    Rates are given per device where there is one.
    """
    recipe, _ = _settings(e)
    large = LARGE.items() <= mapping(e.first.exported.get("model")).items()
    if not (recipe.get("profile") == OFFICIAL and large and _valid(e)):
        return [], None
    rate, scenario = e.value(_RATE), recipe.get("scenario")
    found = [rate if scenario == name else None for name in ("Offline", "Server")]
    rates = [value for total in found for value in (total, total if e.devices == 1 else None)]
    return rates, e.value(_STOPPED.format(90)) if scenario == "SingleStream" else None
