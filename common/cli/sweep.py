# SPDX-License-Identifier: Apache-2.0
"""``repeat N --sweep NAME=VALUE,VALUE``: N runs of each value, and a table with the best one.

Several sweeps are a product. Each value has the ledger of its own words, so that the same command
continues where it stopped, and ``repeat`` with that value finds the same runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
from collections.abc import Sequence
from typing import IO, Any

from bertbench.benchmarks import load
from bertbench.common.cli.ledger import RUN, Ledger, Repeat, summary
from bertbench.common.cli.run_words import settings_of
from bertbench.common.config.batch_split import requested
from bertbench.common.errors import BadInput, BertbenchError, placed
from bertbench.common.files import shown
from bertbench.common.launch.subprocess_runs import Starter

RATE, TIME = "sequences_per_second", "time_to_target_s"
MOST = 1000
_NEVER = {"seed": ": repeat counts seeds"} | dict.fromkeys(
    ("output_dir", "system", "tensorboard", "track", "config", "json", "quiet", "help"),
    ": it changes no run",
)
Values = dict[str, str]
"""Name of a flag -> its value."""


def points(sweeps: Sequence[str]) -> list[Values]:
    """Return all combinations of ``NAME=VALUE,VALUE,...``; raises BadInput for other texts."""
    axes: dict[str, list[str]] = {}
    for text in sweeps:
        name, equals, listed = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        values = [value.strip() for value in listed.split(",")]
        if not equals or not name or not all(values) or len(set(values)) < len(values):
            raise BadInput(
                f"--sweep {shown(text, 80)}: write NAME=VALUE,VALUE with different values, for "
                f"example --sweep micro_batch=16,32,64"
            )
        if name in axes or name in _NEVER:
            why = "is given twice" if name in axes else f"is not for a sweep{_NEVER[name]}"
            raise BadInput(f"--sweep {shown(name, 40)} {why}")
        axes[name] = values
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(found) > MOST:
        raise BadInput(f"--sweep: {len(found)} combinations are more than {MOST}: leave some out")
    return found


def words_of(values: Values) -> list[str]:
    """Return the flags of one combination."""
    words: list[str] = []
    for name, value in values.items():
        switch = value.lower() in ("true", "false")
        words += [f"--{'no_' * (value.lower() == 'false')}{name}", *([] if switch else [value])]
    return words


def ledgers(words: Sequence[str], every: Sequence[Values], given: Any) -> list[Ledger]:
    """Return the ledger of each combination, with its runs so far.

    Raises BadInput or Unsupported for the first one that cannot be run, before any is.
    """
    found: list[Ledger] = []
    seen: dict[str, Values] = {}
    for values in every:
        own = [*words, *words_of(values)]
        try:
            settings = settings_of(own)
            load(settings.preset.benchmark).check(settings)
            requested(settings.recipe.global_batch, settings.impl, given.devices)
        except BertbenchError as error:
            raise placed(f"--sweep {_shown(values)}", error) from error
        content = settings.as_dict()
        same = json.dumps([content[part] for part in ("recipe", "impl", "run")], sort_keys=True)
        if (other := seen.setdefault(same, values)) is not values:
            raise BadInput(f"--sweep: {_shown(other)} and {_shown(values)} are the same run")
        where = (settings.run.output_dir, {RUN: own}, settings.run.seed, given.devices)
        found.append(Ledger.open(*where, given.fresh))
    return found


def sweep(words: Sequence[str], given: Any, starter: Starter, out: IO[str]) -> int:
    """Make the missing runs of all combinations and print the table; return the exit code.

    Raises BadInput or Unsupported as ``ledgers`` does.
    """
    every = points(given.sweep)
    with contextlib.ExitStack() as locks:
        for ledger in (found := ledgers(words, every, given)):
            locks.enter_context(ledger.locked())
        found = ledgers(words, every, given)  # again: nobody changes them from here on
        rows = []
        for number, (values, ledger) in enumerate(zip(every, found, strict=True), 1):
            print(f"value {number} of {len(every)}: {_shown(values)}", file=out, flush=True)
            work = Repeat(ledger, given.count, starter, given.force, out)
            code = work.execute()
            if code is not None:
                reason = "; ".join(work.refusal) or "stopped"
                if given.json:
                    print(json.dumps({"error": f"{_shown(values)}: {reason}", "exit_code": code}))
                elif work.refusal:
                    raise BadInput(f"{_shown(values)}: {reason}")
                return code
            rows.append(_row(values, work))
    best, metric = choose(rows)
    content = {"sweep": rows, "best": best and best["values"], "best_by": metric}
    print(json.dumps(content, indent=1) if given.json else render(rows, best, metric))
    return int(any(row["stability"]["value"] < 1 for row in rows))


def _row(values: Values, work: Repeat) -> dict[str, Any]:
    side = work.ledger.side(RUN, work.seeds)
    made = summary(side, len(side.runs) + len(side.damaged) + len(work.silent))
    records = [str(run.path) for run in side.runs]
    return {"values": values, "ledger": str(work.ledger.path), "records": records, **made}


def choose(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the best row and the metric that says so; None and None without a metric.

    Only rows with the largest share of runs that ended well count. Of these, the time to the
    target decides where every run reached it, else the rate.
    """
    most = max(row["stability"]["value"] for row in rows)
    steady = [row for row in rows if row["stability"]["value"] == most]
    timed = most == 1 and all(_metric(row, TIME) for row in steady)
    name = TIME if timed else RATE
    known = [(one["median"], row) for row in steady if (one := _metric(row, name))]
    if not known:
        return None, None
    best = (min if timed else max)(known, key=lambda pair: pair[0])
    return best[1], name


def render(rows: Sequence[dict[str, Any]], best: dict[str, Any] | None, metric: str | None) -> str:
    """Return the table, and a sentence on the best row."""
    labels = [_shown(row["values"]) for row in rows]
    width = max(map(len, labels))
    lines = [f"\n{'value':<{width}}  reached  {RATE:<36} {TIME}"]
    for label, row in zip(labels, rows, strict=True):
        reached = f"{row['stability']['reached']}/{row['stability']['n']}"
        texts = [_interval(_metric(row, name)) for name in (RATE, TIME)]
        lines.append(f"{label:<{width}}  {reached:<7}  {texts[0]:<36} {texts[1]}".rstrip())
    lines.append("median over runs, with its distribution-free interval")
    if best is None or metric is None:
        return "\n".join([*lines, "the best value is unknown: no run has a rate"])
    text = f"best by {metric}: {_shown(best['values'])}, {_interval(_metric(best, metric))}"
    others = [row for row in rows if row is not best]
    if less := [row for row in others if row["stability"]["value"] < best["stability"]["value"]]:
        names = ", ".join(_shown(row["values"]) for row in less)
        text += f"; left out, since fewer of their runs ended well: {names}"
    others = [row for row in others if row not in less]
    if unsure := [_shown(row["values"]) for row in others if not _apart(best, row, metric)]:
        text += f"; not shown to differ from {', '.join(unsure)}"
    return "\n".join([*lines, text])


def _apart(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    """Return whether the intervals of both are known and do not overlap."""
    mine, theirs = ((_metric(row, name) or {}).get("interval") for row in (one, other))
    if not mine or not theirs:
        return False
    return bool(mine["high"] < theirs["low"] or theirs["high"] < mine["low"])


def _metric(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((one for one in row["metrics"] if one["name"] == name), None)


def _interval(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    known = metric["interval"]
    spread = "no interval" if known is None else (
        f"{known['low']:.6g} to {known['high']:.6g}, {known['confidence']:.1%}"
    )  # fmt: skip
    return f"{metric['median']:.6g} ({spread})"


def _shown(values: Values) -> str:
    return shown(" ".join(f"{name}={shlex.quote(value)}" for name, value in values.items()), 80)
