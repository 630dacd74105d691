# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-mlperf``: write runs as a submission that MLPerf's package checker accepts.

    DIR/ORG/systems/SYSTEM.json                     the machine (export_system.py)
    DIR/ORG/results/SYSTEM/bert/result_N.txt        the runs' MLPerf logs, by time
    DIR/ORG/benchmarks/bert/implementations/bertbench/
        README.md                                   the runs, and how to repeat them
        records/result_N/{manifest,config}.json     each run's record
        source/                                     the code, if it is the code that ran

The tree appears only if the checker accepts it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bertbench.common.config.recipe import CHOSEN
from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_checks import check_complete, check_sound, refuse
from bertbench.common.exchange.export_system import describe, status_words
from bertbench.common.files import file_sha256, shown
from bertbench.common.measure.code import FOLDERS, ROOT, code_hash
from bertbench.common.mlperf.compliance import foreign_words, read_whole, run_checker
from bertbench.common.mlperf.log import LOG, TOKEN, log_lines, read_log
from bertbench.common.results.result import Result

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
FIXED = ("submitter", "division")
"""Fields of the system that follow from --org and the runs."""
_TIMEOUT_S = 600


def export(
    results: Sequence[Result],
    out: Path,
    org: str,
    *,
    fields: dict[str, str] | None = None,
    ruleset: str | None = None,
) -> tuple[Path, list[str]]:
    """Write ``out/org`` and return it with notes for the user.

    ``fields`` are the user's fields of the system's description. Raises BadInput for anything that
    cannot be submitted, before anything is written.
    """
    fields = dict(fields or {})
    clash = [name for name in FIXED if name in fields]
    if clash:
        raise BadInput(f"{', '.join(clash)} follows from --org and the runs: leave it out")
    check_target(out, org)
    runs = sorted(results, key=lambda r: (r.created or "", r.run_id))
    check_sound(runs, ruleset)
    check_complete(runs)
    logs = [Log(run) for run in runs]
    first, log = runs[0], logs[0]
    ruleset = ruleset or str(first.manifest["mlperf"]["ruleset"])
    division = str(first.manifest["mlperf"]["division"])
    status = fields.get("status") or log.chosen("submission_status")
    _check_labels(log, org, status)
    known = {"submitter": org, "division": division, "system_name": first.system_name}
    if status:
        known["status"] = status
    system, notes = describe(first, fields, known, statuses=status_words(ruleset))
    name = system["system_name"]
    if not NAME.fullmatch(name):
        raise BadInput(f"--system_name {shown(name)!r} cannot name a folder: letters, digits, . _")
    own = code_hash() == first.code_hash
    notes += source_notes(runs, division, own)
    labels = {"submission_org": org, _STATUS: status or ""}

    def build(tree: Path) -> None:
        (tree / "systems").mkdir(parents=True)
        _write(tree / "systems" / f"{name}.json", json.dumps(system, indent=2) + "\n")
        folder = tree / "results" / name / log.benchmark
        folder.mkdir(parents=True)
        place = tree / "benchmarks" / log.benchmark / "implementations" / "bertbench"
        for number, (run, each) in enumerate(zip(runs, logs, strict=True)):
            _write(folder / f"result_{number}.txt", each.labelled(labels))
            record = place / "records" / f"result_{number}"
            record.mkdir(parents=True)
            for part in ("manifest.json", "config.json"):
                _write(record / part, (run.path / part).read_text(encoding="utf-8"))
        _write(place / "README.md", _readme(runs, name, division, ruleset, own))
        if own:
            copy_source(place / "source")

    return appear(out / org, build, lambda tree: check_package(tree, ruleset)), notes


def check_target(out: Path, org: str) -> None:
    """Raise BadInput where the organisation cannot name a folder in ``out``, or it exists."""
    if not NAME.fullmatch(org):
        raise BadInput(f"--org {shown(org)!r} cannot name a folder: letters, digits, . _ + -")
    if (out / org).exists():
        raise BadInput(f"{shown(out / org)} exists: choose another --output")


_STATUS = "submission_status"


def _check_labels(log: Log, org: str, status: str | None) -> None:
    """Raise BadInput if flags of the runs contradict --org or --status."""
    for flag, key, value in (("--org", "submission_org", org), ("--status", _STATUS, status)):
        chosen = log.chosen(key)
        if chosen not in (None, value):
            raise BadInput(
                f"{flag} is {shown(value)!r}, but the runs were made with --{key} {shown(chosen)}"
            )


def source_notes(runs: Sequence[Result], division: str, own: bool) -> list[str]:
    """Return notes on the source; raise BadInput if a closed submission would lack it."""
    notes = []
    if not own:
        text = f"the source is not included: the runs used commit {runs[0].manifest['commit']}"
        if division == "closed":
            raise BadInput(f"{text}, and the closed division must publish it: export from there")
        notes.append(f"{text}; export from there to include it")
    if any(run.manifest["dirty"] for run in runs):
        notes.append("made with uncommitted changes: publish them, or run again from the commit")
    return notes


class Log:
    """A run's MLPerf log, and which of its submission labels a flag chose."""

    def __init__(self, run: Result) -> None:
        self._lines = log_lines(run.content(LOG), "utf-8")
        self._origins = run.config["origins"]
        self._values = {e["key"]: e["value"] for _, e in read_log(self._lines) if e is not None}
        self.benchmark = str(self._values.get("submission_benchmark"))

    def chosen(self, key: str) -> str | None:
        """Return the value of ``key`` if a flag gave it; None if it is the default."""
        return str(self._values[key]) if self._origins.get(key) in CHOSEN else None

    def labelled(self, labels: dict[str, str]) -> str:
        """Return the log with ``labels`` in place of default ones."""
        lines = list(self._lines)
        for number, event in read_log(self._lines):
            if event is not None and labels.get(event["key"], event["value"]) != event["value"]:
                before = lines[number - 1].partition(TOKEN)[0]
                event["value"] = labels[event["key"]]
                lines[number - 1] = before + TOKEN + json.dumps(event)
        return "\n".join(lines).rstrip("\n") + "\n"


def appear(tree: Path, build: Callable[[Path], None], check: Callable[[Path], list[str]]) -> Path:
    """Build the tree and rename it into place; raise BadInput if ``check`` finds problems."""
    out = tree.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    except OSError as error:
        raise BadInput(
            f"cannot write into {shown(out)}: {error.strerror}; choose another --output"
        ) from error
    try:
        build(work / tree.name)
        refuse("not written: the package checker refuses it", check(work / tree.name))
        (work / tree.name).rename(tree)
    finally:
        shutil.rmtree(work)
    return tree


def check_package(tree: Path, ruleset: str) -> list[str]:
    """Return the findings of MLPerf's package checker on ``tree``; empty if it accepts it."""
    foreign = [
        f"{log.name}: {text}"
        for log in sorted(tree.glob("results/*/*/*"))
        for text in foreign_words(read_log(log_lines(read_whole(log))))
    ]
    if foreign:
        return foreign
    options = (str(tree.resolve()), "training", ruleset)
    try:
        done = run_checker("package_checker", *options, files={}, tree=tree, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"the checker took more than {_TIMEOUT_S} s"]
    if "PACKAGE CHECKER FOUND NO ERRORS" in done.stderr:
        return []
    lines = done.stderr.strip().splitlines()
    said = [shown(line.removeprefix("ERROR - ").strip()) for line in lines if "ERROR - " in line]
    return said or [shown(lines[-1] if lines else f"exit code {done.returncode}")]


def _readme(runs: Sequence[Result], system: str, division: str, ruleset: str, own: bool) -> str:
    first = runs[0]
    command = " ".join(["bertbench", *map(str, first.manifest["command"])])
    rows = []
    for number, run in enumerate(runs):
        quality, seconds = run.quality or {}, run.value("run_time_s")
        cells = [
            f"result_{number}", run.run_id, run.seed, run.status, run.samples,
            "" if seconds is None else f"{seconds:.2f}", quality.get("metric", ""),
            quality.get("value", ""), file_sha256(run.path / LOG),
        ]  # fmt: skip
        rows.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    source = "`source/`" if own else f"commit {first.manifest['commit']} of bertbench"
    return "\n".join(
        [
            f"# {shown(first.preset)} on {system}",
            "",
            f"MLPerf Training {ruleset}, {division} division. Made with bertbench; the code is "
            f"{source} (hash {first.code_hash}), the recipe has hash {first.recipe_hash}.",
            "",
            "## Repeat it",
            "",
            "    bash init.sh",
            f"    {shown(command, 2000)}",
            "",
            "Each run was a separate process with the seed below. Hashes of data and starting "
            f"weights: {shown(json.dumps(first.manifest['inputs']), 400)}; "
            f"benchmarks/{first.benchmark}/README.md of the source describes how to get them.",
            "",
            "## Runs",
            "",
            "| log | run | seed | status | samples | run_start to run_stop, s | quality | value "
            "| sha256 of the record's log |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "The logs are those of the records, except submission_org and submission_status if no "
            "flag of the run set them.",
            "",
        ]
    )


def copy_source(target: Path) -> None:
    """Copy the product's files, without build products."""

    def unwanted(folder: str, names: list[str]) -> set[str]:
        return {n for n in names if n.startswith((".", "__pycache__")) or n.endswith((".so", ".o"))}

    target.mkdir()
    for name in (*FOLDERS, "bertbench", "requirements", "scripts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=unwanted)
    for file in (*ROOT.glob("*.sh"), *ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "pyproject.toml"):
        if file.is_file():
            shutil.copy2(file, target)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
