#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Report everything about one accelerator in one call of less than 500 seconds.

    python tools/device_check.py [--backend cuda] [--output DIR] [--budget SECONDS] [--only a,b]
    python tools/device_check.py --list
    python tools/device_check.py --backend cpu_ref --tiny     # tests the tool without hardware

It runs from a checkout, without installation, network or version control. Each section runs in a
separate process: a failure, crash or hang cannot affect another section. All output is below DIR:
result.json (rewritten after each section), table.md, one text file per section with its output,
profile.txt, the records in results/, and records.tar.gz of them. docs/device-check.md describes
the sections.

Exit codes: 0 no section failed; 1 at least one did; 2 refused before anything ran; 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

BEGIN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
_LACKS = "install the suite's dependencies (docs/device-check.md)"

try:
    from check import records
    from check.device import Check
    from check.figure import FAILED, Outcome
    from check.section import Section, Stopped, run_section, skip
    from check.sections import SECTIONS
    from check.table import render

    from bertbench import backends
    from bertbench.common.errors import BertbenchError
    from bertbench.common.files import write_atomic
    from bertbench.common.measure.code import code_hash, git_state
    from bertbench.common.measure.system import package_version
except ImportError as missing:
    print(f"device_check: {missing}; {_LACKS}", file=sys.stderr)
    raise SystemExit(2) from None

BUDGET_S = 480.0
SCHEMA_VERSION = 1
RESULT, TABLE = "result.json", "table.md"
PACKAGES = ("torch", "triton", "transformers", "numpy")
TRY_ON_CPU = "--backend cpu_ref --tiny tries the tool on the CPU"


class Refused(Exception):
    """An invalid request; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Refuse in one line."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message} (--help lists the options)")


def main(argv: Sequence[str] | None = None, begin: float | None = None) -> int:
    """Run the check; return the exit code. The budget counts from ``begin`` (time.monotonic)."""
    try:
        options = parse(argv)
        chosen = choose(SECTIONS, options.only)
        if options.list:
            print(listing(chosen if options.only else SECTIONS, chosen))
            return 0
        check = prepare(options)
    except (Refused, BertbenchError) as error:
        print(f"device_check: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with private_environment(check.folder), stoppable():
            return run(check, chosen, options.budget, arguments, begin)
    except KeyboardInterrupt:  # between two sections
        print("device_check: stopped", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; raises Refused."""
    parser = Parser(
        prog="device_check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backend", default="cuda", help="see `bertbench doctor` (default: cuda)")
    parser.add_argument(
        "--output", type=Path, default=Path("device-check"), metavar="DIR",
        help="a folder that does not exist or is empty (default: device-check)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, metavar="SECONDS",
        help=f"skip a section that would exceed it (default: {BUDGET_S:g})",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="A,B", help="these sections only")
    parser.add_argument("--tiny", action="store_true", help="small shapes, not measurements")
    parser.add_argument("--list", action="store_true", help="list the sections and end")
    options = parser.parse_args(argv)
    if not 0 < options.budget < float("inf"):
        raise Refused(f"--budget {options.budget:g}: give a number of seconds above 0")
    return options


def listing(sections: Sequence[Section], chosen: Sequence[Section]) -> str:
    """Return name, expected seconds and summary of each section, and the sum of the chosen ones."""
    lines = [f"{s.name:<16}{s.expected_s:>5.0f} s  {s.summary}" for s in sections]
    return "\n".join([*lines, f"{'sum':<16}{sum(s.expected_s for s in chosen):>5.0f} s"])


def choose(sections: Sequence[Section], only: str) -> list[Section]:
    """Return the sections that ``only`` names, or the usual ones; raise Refused for others."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [s.name for s in sections]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refused(f"unknown section {', '.join(unknown)}; known: {', '.join(known)}")
    return [s for s in sections if (s.name in names if names else not s.only)]


def prepare(options: argparse.Namespace) -> Check:
    """Examine the backend and make the folder. Raises Refused or a BertbenchError."""
    folder: Path = options.output
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file; choose a folder as --output")
    if folder.exists() and any(folder.iterdir()):
        raise Refused(
            f"{folder} exists and is not empty; choose another --output: the tool never overwrites"
        )
    try:
        kind = backends.resolve(options.backend)
    except BertbenchError as error:
        raise Refused(f"{error}; {TRY_ON_CPU}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot write {folder}: {error.strerror}") from error
    return Check(backend=kind.name, tiny=options.tiny, folder=folder)


def run(
    check: Check,
    sections: Sequence[Section],
    budget_s: float,
    arguments: Sequence[str],
    begin: float | None = None,
) -> int:
    """Run ``sections`` in order and write all output; return the exit code."""
    begin = time.monotonic() if begin is None else begin
    heading = describe(check, budget_s, arguments)
    outcomes: list[Outcome] = []
    stopped = False

    def elapsed() -> float:
        return time.monotonic() - begin

    say(f"device_check: {check.backend}, {len(sections)} sections, into {check.folder}")
    for section in sections:
        held_back = sum(s.expected(check) for s in sections if s.closing)
        left = budget_s - held_back - elapsed()
        outcome = skip(section, check, left, budget_s)
        if outcome is None:
            say(f"[{elapsed():6.1f} s] {section.name} ...")
            try:
                outcome = run_section(section, check, left)
            except Stopped as stop:
                stopped, outcome = True, stop.outcome
        outcomes.append(outcome)
        because = f": {outcome.reason}" if outcome.reason else ""
        say(f"[{elapsed():6.1f} s] {section.name} {outcome.status}{because}")
        write(check, {**heading, "seconds": round(elapsed(), 1)}, outcomes)
        if stopped:
            break
    archive = records.pack(check)
    table = (check.folder / TABLE).read_text(encoding="utf-8")
    say(f"\n{table}")
    written = [check.folder / RESULT, check.folder / TABLE, *([archive] if archive else ())]
    say(f"written: {', '.join(map(str, written))}")
    if stopped:
        return 130
    return int(any(o.status == FAILED for o in outcomes))


def say(text: str) -> None:
    """Print a line; ignore a missing reader."""
    try:
        print(text, flush=True)
    except OSError:  # a closed pipe, a full disk: the files below DIR are what counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(check: Check, budget_s: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the heading of result.json: the call, the code and the software."""
    return {
        "schema_version": SCHEMA_VERSION,
        "started_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "argv": list(arguments),
        "backend": check.backend,
        "tiny": check.tiny,
        "budget_s": budget_s,
        "code": {"code_hash": code_hash(), **git_state()},
        "software": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
    }


def write(check: Check, heading: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Rewrite result.json and table.md atomically."""
    facts = [f for o in outcomes for f in o.facts]
    simulated = any((f.name, f.text) == ("simulated", "yes") for f in facts)
    heading = {**heading, "simulated": simulated}
    result = {
        **heading,
        "sections": [
            {k: v for k, v in asdict(o).items() if k not in ("figures", "facts")} for o in outcomes
        ],
        "figures": [asdict(f) for o in outcomes for f in o.figures],
        "facts": [asdict(f) for f in facts],
    }
    write_atomic(check.folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomic(check.folder / TABLE, render(heading, outcomes))


@contextmanager
def private_environment(folder: Path) -> Iterator[None]:
    """Make children import this checkout and put temporary files below ``folder``."""
    work = (folder / "tmp").resolve()
    work.mkdir()
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path), TMPDIR=str(work)):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(work / "triton"))
        try:
            yield
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, too: the table is still written."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(begin=BEGIN))
