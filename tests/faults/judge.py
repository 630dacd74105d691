# SPDX-License-Identifier: Apache-2.0
"""Is what a disturbed command did and left behind right? Each problem is one line of text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.forks import Ended, command
from tests.faults.targets import Target

CODES = (0, 1, 2, 130)
MORE_MEMORY = 1500 << 20
MADE = ("new", "made", "weights", "published", "cache", "page", "repeated")
"""What a command may write, in the case's folder."""
TRACES = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored|Fatal Python error|terminate called|"
    r"\[rank\d\]:.*Error|AddressSanitizer|free\(\): |malloc\(\): |corrupted (?:size|top|double)"
)
SAID = re.compile(
    r"damaged|cannot be read|cannot read|unreadable|could not|left out|checksum", re.I
)
"""Words with which a command says that its result lacks something."""
CONTROL = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]")


@dataclass
class Clean:
    """What the undisturbed command does, as far as two runs of it agree."""

    seconds: float
    rss: int
    seen: dict[str, int]
    written: int
    code: int
    lines: list[str] = field(default_factory=list)
    tree: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What was done to the command, as far as it matters for judging."""

    signal: int = 0
    path: str = ""
    """Where it struck, relative to the case's folder; empty where it did not, or has no path."""
    struck: bool = False
    on_output: bool = False
    """It struck standard output or error."""
    moved: str | None = None
    """What it took away."""


def streams(ended: Ended, *, signal: int = 0, rss: int = 0, timeout: float = 30) -> list[str]:
    """Return the problems of how a command ended and of its text."""
    if ended.code is None:
        return [f"no end within {timeout:.0f} s ({_where(ended.err)})"]
    found = []
    if ended.code < 0 and -ended.code != signal:
        found.append(f"died of signal {-ended.code} ({_where(ended.err)})")
    elif ended.code >= 0 and ended.code not in CODES:
        found.append(f"exit code {ended.code}")
    if (match := TRACES.search(ended.text)) and (-ended.code != signal or not signal):
        found.append(f"{match[0][:9]}: {_last_line(ended.text, match.start())}")
    if rss and ended.rss > rss + MORE_MEMORY:
        found.append(f"memory: {ended.rss >> 20} MiB, undisturbed {rss >> 20}")
    return found


def _where(err: str) -> str:
    """Return the innermost product line of a stack that faulthandler printed."""
    current = err[err.rfind("most recent call first") :]
    for line in re.findall(r'File "([^"]+)", line (\d+) in (\S+)', current):
        if "bertbench" in line[0]:
            return f"{line[0].split('/bertbench/')[-1]}:{line[1]} {line[2]}"
    return "no stack"


def _last_line(text: str, start: int) -> str:
    """Return the error's own line behind a traceback's, with its innermost product line."""
    part = text[start : start + 20000]
    errors = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*$", part, re.M
    )
    places = re.findall(r'File "[^"]*?/bertbench/((?:common|back|bench)[^"]+)", line (\d+)', part)
    return f"{(errors or ['?'])[-1][:120]} at {':'.join(places[-1]) if places else '?'}"


# -- what is left behind ---------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, str]:
    """Return relative path -> sha256 of each plain file."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if stat.S_ISREG(path.lstat().st_mode):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(folder))] = digest
    return found


def inputs(folder: Path) -> dict[str, str]:
    return {k: v for k, v in tree(folder).items() if k.split("/")[0] not in MADE}


def records(folder: Path) -> list[Path]:
    return sorted(
        p.parent for p in folder.glob("*/*/*/manifest.json") if not p.parent.name.startswith(".")
    )


def numbers(record: Path) -> dict[str, Any]:
    """Return what the same recipe and seed must give again: steps, losses, accuracies."""
    exact = ("mlm_accuracy", "f1", "exact_match")
    values: dict[str, Any] = {"steps": [], "evaluations": []}
    for line in (record / "steps.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "step":
            values["steps"].append([entry["step"], entry["samples"], entry["loss"]])
        elif entry["kind"] == "eval":
            found = {k: v for k, v in entry["metrics"].items() if k in exact}
            values["evaluations"].append([entry["step"], found])
    manifest = json.loads((record / "manifest.json").read_text())
    values |= {k: manifest[k] for k in ("step", "samples")}
    return values | {"metrics": {m["name"]: m["value"] for m in manifest["metrics"]
                                 if m["name"] in exact}}  # fmt: skip


def judge(
    folder: Path, target: Target, ended: Ended, fault: Fault, clean: Clean,
    before: dict[str, str],
) -> list[str]:  # fmt: skip
    """Return the problems of a disturbed command in ``folder``."""
    found = streams(ended, signal=fault.signal, rss=clean.rss, timeout=target.timeout)
    if target.trains:
        found += trained(folder, ended, fault, clean)
    elif target.output:
        found += _written(folder, target, ended, fault, clean)
    elif ended.code == clean.code and not fault.on_output and not fault.signal:
        missing = [line for line in clean.lines if line not in ended.out.splitlines()]
        if missing and not SAID.search(ended.text):
            found.append(f"exit code {ended.code}, but not: {missing[0][:80]}")
    if not fault.struck and ended.code != clean.code:
        found.append(f"undisturbed, but exit code {ended.code}: {ended.err[-100:]!r}")
    after = inputs(folder)
    for name, digest in before.items():
        if fault.moved and name.split("/")[0] == fault.moved:
            continue
        if after.get(name) != digest:
            found.append(f"{name}: {'changed' if name in after else 'gone'}")
    if match := CONTROL.search(ended.text):
        found.append(f"control character {match[0]!r} in its text")
    return found


def _written(
    folder: Path, target: Target, ended: Ended, fault: Fault, clean: Clean
) -> Iterator[str]:
    assert target.output
    now = tree(folder / target.output)
    shown = {k: v for k, v in now.items() if not any(p.startswith(".") for p in Path(k).parts)}
    if ended.code == 0 and clean.code == 0 and not SAID.search(ended.text):
        for name, digest in clean.tree.items():
            if name not in now or digest not in ("", now[name]):
                yield f"exit code 0, but {name} is {'other' if name in now else 'missing'}"
                return
    if fault.struck and not fault.signal and not fault.path.startswith(target.output):
        return  # an input that could not be read: the output lacks it, and says so
    old = clean.record.get("old", {})
    complete = "manifest.json" in now or target.output != "made"
    for name, digest in shown.items():
        if complete and name not in clean.tree:
            yield f"left behind: {target.output}/{name}"
        elif complete and clean.tree[name] not in ("", digest) and old.get(name) != digest:
            yield f"neither old nor new: {target.output}/{name}"


def again(folder: Path, target: Target, clean: Clean) -> list[str]:
    """Return the problems of the same command, undisturbed, after a fault."""
    assert target.output
    ended = command(list(target.argv), cwd=folder, timeout=target.timeout)
    now = tree(folder / target.output)
    other = [k for k, v in clean.tree.items() if k not in now or v not in ("", now[k])]
    if ended.code not in (0, 2) or other:
        return [f"again: exit code {ended.code}, {other[:2]} differ: {ended.err.strip()[-160:]}"]
    return []


def trained(folder: Path, ended: Ended, fault: Fault, clean: Clean) -> Iterator[str]:
    """Yield the problems of the records that a run left below new/."""
    from bertbench.common.results.validate import validate

    left = records(folder / "new")
    if ended.code == 0 and len(left) != 1:
        yield f"exit code 0, but {len(left)} records"
    for record in left:
        try:
            manifest = json.loads((record / "manifest.json").read_text())
            errors = [f"{p.file}: {p.text}" for p in validate(record) if p.severity == "error"]
            now = numbers(record)
        except (OSError, ValueError, KeyError) as error:
            yield f"record unreadable: {type(error).__name__}: {error}"
            continue
        status, sealed = manifest["status"], manifest["files"] is not None
        if errors:
            yield f"record ({status}) invalid: {errors[0][:160]}"
        if ended.code == 0 and not (status == "ok" and sealed):
            yield f"exit code 0, but the record is {status}{'' if sealed else ', not sealed'}"
        if status == "ok" and now != clean.record["numbers"]:
            names = [k for k, v in clean.record["numbers"].items() if now.get(k) != v]
            yield f"ok with other numbers: {', '.join(names)}"
        finished = now["steps"][-1:] == clean.record["numbers"]["steps"][-1:]
        own_fault = fault.path.startswith("new") or fault.signal in (1, 9)
        if finished and fault.struck and not own_fault:
            kept = sealed if fault.signal else sealed and status == "ok"
            if not kept:
                yield f"trained to the end, lost: {status}{'' if sealed else ', not sealed'}"
        yield from _checkpoints(record)


def _checkpoints(record: Path) -> Iterator[str]:
    from bertbench.common.errors import BertbenchError
    from bertbench.common.training.checkpoint import load

    for path in record.glob("checkpoints/step_*"):
        try:
            load(path)
        except BertbenchError:
            pass
        except Exception as error:
            yield f"{path.name}: {type(error).__name__}: {error}"


def _metrics(case: Path) -> Iterator[dict[str, float]]:
    for record in records(case / "new"):
        manifest = json.loads((record / "manifest.json").read_text())
        yield {m["name"]: m["value"] for m in manifest["metrics"]}


def clock_problems(case: Path, ended: Ended, resumed: bool) -> list[str]:
    """Return the durations of a run that are longer than the run, or negative."""
    found = []
    for metrics in _metrics(case):
        for name, value in metrics.items():
            low, high = (0, ended.seconds + 1) if name.endswith("_s") else (0, float("inf"))
            if value is not None and not low <= value <= high:
                found.append(f"{name} {value:.6g}, but the run took {ended.seconds:.1f} s")
    for log in case.glob("new/*/*/*/result_0.txt"):
        times = {}
        for line in log.read_text().splitlines():
            event = json.loads(line.removeprefix(":::MLLOG "))
            times.setdefault(event["key"], event["time_ms"])
        spans = [("init_start", "init_stop")]
        if not resumed:  # whose log holds the first run, and the pause
            spans.append(("run_start", "run_stop"))
        for first, last in spans:
            if first in times and last in times:
                seconds = (times[last] - times[first]) / 1000
                if not 0 <= seconds <= ended.seconds + 1:
                    found.append(f"MLPerf log: {last} {seconds:.1f} s after {first}")
    return found


def sensor_problems(case: Path, ended: Ended) -> list[str]:
    """Return figures of energy and power that are not those of a device that draws 100 W."""
    found = []
    for metrics in _metrics(case):
        watts, joules = metrics.get("power_w"), metrics.get("energy_j")
        if watts is not None and not 70 <= watts <= 125:
            found.append(f"power_w {watts:.4g}, but it was 100")
        if joules is not None and not 0 <= joules <= 125 * ended.seconds:
            found.append(f"energy_j {joules:.4g} in {ended.seconds:.1f} s at 100 W")
        if (took := metrics.get("run_time_s")) is not None and took > 5:
            found.append(f"run_time_s {took:.3g}: the sensor stretches the window")
    return found
