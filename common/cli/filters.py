# SPDX-License-Identifier: Apache-2.0
"""Which runs a verb takes: places and filters, the same for every verb that takes records."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.results.record import STATUSES
from bertbench.common.results.result import RUNNING
from bertbench.common.results.store import Damaged, Result, load_results

PLACE = Path("results")
"""The place of records where none is named."""
_MOST_VALUES, _MOST_RUNS = 12, 10
_LEAST_HASH = 6
"""Characters of a recipe's hash; fewer may be a name."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?Z?")


class _Field(NamedTuple):
    of: Callable[[Result], object]
    matches: Callable[[str, str], bool]
    """(value given, value of the run) -> whether the run stays; both in lower case."""
    metavar: str
    help: str


def _equal(given: str, value: str) -> bool:
    return given == value


def _within(given: str, value: str) -> bool:
    return given in value


def _begins(given: str, value: str) -> bool:
    return value.startswith(given)


def _recipe(given: str, value: str) -> bool:
    name, _, digest = value.rpartition(" ")
    return given == name or (len(given) >= _LEAST_HASH and digest.startswith(given))


_FIELDS = {
    "recipe": _Field(
        lambda r: f"{r.preset} {r.recipe_hash or ''}",
        _recipe,
        "NAME",
        "runs of this recipe: its name, or the beginning of its hash",
    ),
    "benchmark": _Field(lambda r: r.benchmark, _equal, "NAME", "runs of this benchmark"),
    "device": _Field(
        lambda r: r.device_name or r.system_name, _within, "TEXT", "runs on devices named like this"
    ),
    "backend": _Field(lambda r: r.backend, _equal, "NAME", "runs of this backend"),
    "precision": _Field(lambda r: r.precision, _equal, "NAME", "runs in this precision"),
    "status": _Field(
        lambda r: r.status, _equal, "STATUS", f"runs that are {', '.join((*STATUSES, RUNNING))}"
    ),
    "seed": _Field(lambda r: r.seed, _equal, "N", "runs with this seed"),
    "commit": _Field(
        lambda r: r.manifest.get("commit"), _begins, "HASH", "runs of commits that begin so"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The filters of one command; without any, all runs stay."""

    values: dict[str, list[str]]
    """Field -> values, of which a run has one."""
    since: str | None
    until: str | None
    """Dates in UTC, as in a record, of any length; ``until`` is included."""
    latest: int | None

    def __bool__(self) -> bool:
        return bool(self.values or self.since or self.until or self.latest)

    def select(self, runs: Sequence[Result]) -> list[Result]:
        """Return the runs, in time order, that pass; raise BadInput where a filter leaves none."""
        left = list(runs)
        for text, passes, values in self._conditions():
            kept = [run for run in left if passes(run)]
            if left and not kept:
                raise BadInput(
                    f"{shown(text)} leaves none of {len(left)} run{'s' * (len(left) > 1)}; "
                    f"they have: {values(left)}"
                )
            left = kept
        return left if self.latest is None else left[-self.latest :]

    def _conditions(
        self,
    ) -> Iterator[tuple[str, Callable[[Result], bool], Callable[[list[Result]], str]]]:
        """Yield flag, test of a run, and the text of the values that runs have."""
        for name, given in self.values.items():
            field = _FIELDS[name]
            wanted = [value.lower() for value in given]

            def passes(run: Result, field: _Field = field, wanted: list[str] = wanted) -> bool:
                value = field.of(run)
                return value is not None and any(
                    field.matches(one, str(value).lower()) for one in wanted
                )

            def values(runs: list[Result], field: _Field = field, name: str = name) -> str:
                return _counted([_short(name, field.of(run)) for run in runs])

            yield f"--{name} {' or '.join(given)}", passes, values
        if (since := self.since) is not None:
            yield f"--since {since}", lambda run: str(run.created) >= since, _dates
        if (until := self.until) is not None:
            yield f"--until {until}", lambda run: str(run.created)[: len(until)] <= until, _dates


def _short(name: str, value: object) -> str:
    text = "unknown" if value is None else str(value)
    if name == "recipe":  # its hashes are many
        return text.rpartition(" ")[0]
    return text[:7] if name == "commit" else text


def _counted(values: list[str]) -> str:
    counts = Counter(values).most_common()
    listed = ", ".join(f"{shown(value, 60)} ({n})" for value, n in counts[:_MOST_VALUES])
    more = len(counts) - _MOST_VALUES
    return listed + (f" and {more} more" if more > 0 else "")


def _dates(runs: list[Result]) -> str:
    dates = sorted(shown(run.created, 20) for run in runs)
    return f"dates from {dates[0]} to {dates[-1]}"


def add_filters(verb: Parser, *, without: Sequence[str] = ()) -> None:
    """Add the filters' flags; ``without`` names those that the verb has for something else."""
    group = verb.add_argument_group(
        "filters", "which runs; repeat one to accept either value, combine several to require all"
    )
    for name, field in _FIELDS.items():
        if name not in without:
            group.add_argument(
                f"--{name}", dest=f"only_{name}", action="append", default=[],
                metavar=field.metavar, help=field.help, type=_text,
            )  # fmt: skip
    group.add_argument(
        "--since", type=_date, metavar="DATE", help="runs from YYYY-MM-DD[Thh:mm[:ss]] on, UTC"
    )
    group.add_argument("--until", type=_date, metavar="DATE", help="runs up to and with this date")
    group.add_argument(
        "--latest", type=_count, nargs="?", const=1, metavar="N",
        help="only the newest run, or the newest N; name places before it",
    )  # fmt: skip


def _date(text: str) -> str:
    try:
        if not _DATE.fullmatch(text):
            raise ValueError
        datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        wanted = "2026-11-21 or 2026-11-21T23:49 (UTC)"
        raise argparse.ArgumentTypeError(f"{shown(text, 40)!r} is not a date as {wanted}") from None
    return text.removesuffix("Z")


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: leave the filter out, or give a value")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text, 60)!r} is not a number of runs: name places before --latest"
        )
    return int(text)


def filters_of(given: argparse.Namespace) -> Filters:
    """Return the filters of a parsed command; raises BadInput for an unknown status."""
    words = vars(given)
    values = {name: words[f"only_{name}"] for name in _FIELDS if words.get(f"only_{name}")}
    known = (*STATUSES, RUNNING)
    for status in values.get("status", ()):
        if status.lower() not in known:
            raise BadInput(f"--status {shown(status, 40)}: choose from {', '.join(known)}")
    return Filters(values=values, since=given.since, until=given.until, latest=given.latest)


def load_runs(
    given: argparse.Namespace, places: Sequence[Path | str]
) -> tuple[list[Result], list[Damaged]]:
    """Return the runs in ``places`` (default: results) that pass the filters, oldest first.

    Damaged records are returned beside them: no filter can judge them. Raises BadInput without a
    record, and where a filter leaves none.
    """
    filters, paths = filters_of(given), list(places) or [PLACE]
    runs, damaged = load_results(paths, references=False)
    if not runs and not damaged:
        raise BadInput(f"no record in {', '.join(map(shown, paths))}: name a folder of results")
    return filters.select(runs), damaged


def chosen_folders(given: argparse.Namespace, places: Sequence[Path]) -> list[Path]:
    """Return the folders that a verb of many records works on.

    Without filters these are ``places`` (default: results), else the folders of the runs that pass.
    Raises BadInput as ``load_runs``.
    """
    if not filters_of(given):
        return list(places) or [PLACE]
    return _readable(given, places)


def chosen_folder(given: argparse.Namespace, place: Path | None) -> Path:
    """Return the folder that a verb of one record works on: ``place``, or the run that is left.

    With filters, or without ``place``, the runs in ``place`` (default: results) are searched.
    Raises BadInput unless exactly one is left.
    """
    if place is not None and not filters_of(given):
        return place
    folders = _readable(given, [place or PLACE])
    if len(folders) == 1:
        return folders[0]
    newest = [f"  {shown(folder, 400)}" for folder in folders[: -_MOST_RUNS - 1 : -1]]
    more = [f"  and {len(folders) - _MOST_RUNS} older"] * (len(folders) > _MOST_RUNS)
    head = f"{len(folders)} runs are left: name one, filter further, or take the newest (--latest)"
    raise BadInput("\n".join([head, *newest, *more]))


def _readable(given: argparse.Namespace, places: Sequence[Path]) -> list[Path]:
    """Return the folders of the runs that pass; name damaged records on standard error."""
    runs, damaged = load_runs(given, places)
    warn_of(damaged)
    if not runs:
        raise BadInput("no record there can be read: `bertbench validate PLACE` says why")
    return [run.path for run in runs]


def warn_of(damaged: Sequence[Damaged]) -> None:
    """Name the records that are left out on standard error."""
    if damaged:
        listed = ", ".join(shown(d.path) for d in damaged[:3]) + ", ..." * (len(damaged) > 3)
        text = f"left out {len(damaged)} damaged or copied records ({listed})"
        print(f"{text}: `bertbench validate` says why", file=sys.stderr)
