# SPDX-License-Identifier: Apache-2.0
"""``bertbench compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bertbench.common.cli.filters import PLACE, Filters, add_filters, filters_of
from bertbench.common.cli.verbs import parser
from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.report.comparison import render
from bertbench.common.results.comparable import GROUPED, Side, group_by, load_side
from bertbench.common.results.compare import compare


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and return its exit code; raises BadInput for wrong words."""
    verb = parser(
        "compare",
        epilog="Exit code: 0 same or better, 1 a judged metric of any group is significantly "
        "worse than the baseline's, 2 not comparable",
    )
    verb.add_argument(
        "groups", nargs="*", metavar="GROUP",
        help="baseline, then the others: run folders, folders of runs, or patterns; with --by all "
        f"together (default: {PLACE})",
    )  # fmt: skip
    listed = ", ".join(GROUPED)
    verb.add_argument(
        "--by", type=_fields, default=[], metavar="FIELD[,FIELD]",
        help=f"group the runs by {listed}; the oldest group is the baseline",
    )  # fmt: skip
    verb.add_argument("--baseline", metavar="VALUE", help="with --by: the group to compare with")
    verb.add_argument(
        "--across", type=_fields, default=[], metavar="FIELD[,FIELD]",
        help="differences between the groups that are compared, not refused; --by implies its own",
    )  # fmt: skip
    verb.add_argument(
        "--metric", action="append", default=[], help="judge only this; repeat it for more"
    )
    add_comparison_flags(verb)
    add_filters(verb)
    given = verb.parse_args(argv)
    if not 0 <= given.threshold <= 100:
        raise BadInput(f"--threshold {given.threshold:g} must be a percentage from 0 to 100")
    found = compare(
        *_groups(given),
        metrics=given.metric,
        threshold=given.threshold,
        force=given.force,
        across=list(dict.fromkeys([*given.by, *given.across])),
    )
    print(json.dumps(found.as_dict(), indent=1) if given.json else render(found))
    return found.exit_code


def _fields(text: str) -> list[str]:
    """Return the names of fields; raises BadInput for an unknown one."""
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if name not in GROUPED:
            raise BadInput(f"no field {shown(name, 40)!r}: choose from {', '.join(GROUPED)}")
    return names


def _groups(given: Any) -> list[Side]:
    """Return the groups, the baseline first; raises BadInput where there are not two."""
    filters = filters_of(given)
    if not given.by:
        if len(given.groups) < 2:
            raise BadInput("give a baseline and other groups, or one place and --by FIELD")
        if given.baseline is not None:
            raise BadInput("--baseline needs --by: without it the first group is the baseline")
        return [_filtered(load_side(text), filters) for text in given.groups]
    whole = _filtered(load_side(*(given.groups or [str(PLACE)])), filters)
    groups = group_by(whole, given.by)
    if given.baseline is not None:
        first = [side for side in groups if side.label.lower() == given.baseline.lower()]
        if not first:
            listed = "; ".join(side.label for side in groups)
            raise BadInput(f"--baseline {shown(given.baseline, 60)}: the groups are {listed}")
        groups = [first[0], *(side for side in groups if side is not first[0])]
    return groups


def _filtered(side: Side, filters: Filters) -> Side:
    """Return the group's runs that pass; raises BadInput, which names the group, for none."""
    try:
        return Side(side.label, filters.select(side.runs), side.damaged)
    except BadInput as error:
        raise BadInput(f"{shown(side.label)}: {error}") from error


def add_comparison_flags(verb: Parser) -> None:
    """Add the flags that ``repeat --against`` shares."""
    verb.add_argument(
        "--threshold", type=float, default=1.0, metavar="PCT",
        help="a regression is worse by more than PCT percent",
    )  # fmt: skip
    verb.add_argument("--force", action="store_true", help="compare runs of different benchmarks")
