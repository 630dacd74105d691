# SPDX-License-Identifier: Apache-2.0
"""Run the official MLPerf checker and state its findings in plain sentences."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown
from bertbench.common.mlperf import confined
from bertbench.common.mlperf.log import LOG, TOKEN, log_lines, read_log

RULESETS = (
    *("0.7.0", "1.0.0", "1.1.0", "2.0.0", "2.1.0", "3.0.0", "3.1.0"),
    *("4.0.0", "4.1.0", "5.0.0"),
)
"""Rounds with BERT; later ones refuse it."""

TARGET = 0.720
DIVISIONS = ("closed", "open")
_TIMEOUT_S = 300
_LARGEST = 64 << 20
_LONGEST = 1 << 16
"""Characters of an event; real ones have a few hundred."""
_SEPARATOR = "\n" + "-" * 30 + "\n"
_COUNT = re.compile(r"Required (EXACTLY|AT_LEAST)_ONE occurrence of (.+?)(?: but found (\d+)(.*))?")
_CHECK = re.compile(r"CHECK for '(\S+)' failed in line (\d+):\n.*?\nfailed test: (.*?)\n")
_FAULT = re.compile(r"Failed executing CHECK code:\n(.*?)\ntriggered by line:\n(.*?)\n")
_UNFINISHED = {"run_stop", "train_samples", "eval_samples", "block_stop", "epoch_stop"}


def check_log(
    path: Path, ruleset: str, division: str | None = None, *, converged: bool = True
) -> list[str]:
    """Return the findings of MLPerf's checker on the log at ``path``; empty if it accepts it.

    ``division`` (closed or open) is the log's required division, if given. With ``converged``
    False a missed target is not a finding. Raises BadInput for an unreadable file and for a ruleset
    without BERT.
    """
    if ruleset not in RULESETS:
        raise BadInput(f"MLPerf ruleset {ruleset!r} has no BERT; choose from {', '.join(RULESETS)}")
    events = list(read_log(log_lines(read_whole(path))))
    problems = _own_checks(events, division)
    foreign = foreign_words(events)
    messages: list[str] = []
    if foreign:
        problems += [f"{text}; MLPerf's checker was not started" for text in foreign]
    else:
        accepted, messages = _run_checker([event for _, event in events if event], ruleset)
        problems += [_sentence(message, events) for message in messages]
        if not accepted and not messages:
            problems.append("the checker failed without a message; run it by hand")
    if not converged:
        problems = [p for p in problems if p != _missed(events)]
    return [f"{shown(path.name)}: {problem}" for problem in problems]


def read_whole(path: Path) -> bytes:
    """Return a log's bytes; raise BadInput for one that is unreadable or too large."""
    try:
        return read_bytes(path, _LARGEST)
    except OSError as error:
        raise BadInput(f"cannot read the MLPerf log {shown(path)}: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"cannot read the MLPerf log {shown(path)}: {error}") from error


def foreign_words(events: Iterable[tuple[int, dict[str, Any] | None]]) -> list[str]:
    """Return the lines whose division or benchmark is not a known word, and those without end.

    MLPerf's checkers make paths of the words, and execute code from the files there; on a value of
    megabytes they take hours.
    """
    from mlperf_logging.benchmark_meta import get_result_file_counts

    known = {
        "submission_division": DIVISIONS,
        "submission_benchmark": tuple(get_result_file_counts("training")),
    }
    found = []
    for number, event in events:
        if event is None:
            continue
        if event["value"] not in known.get(event["key"], (event["value"],)):
            value = shown(repr(event["value"]), 60)
            found.append(f"line {number}: {event['key']} is {value}, not one of MLPerf's")
        if len(json.dumps(event)) > _LONGEST:
            found.append(f"line {number} has more than {_LONGEST} characters: it is not MLPerf's")
    return found


def _own_checks(
    events: Sequence[tuple[int, dict[str, Any] | None]], division: str | None
) -> list[str]:
    problems = []
    for number, event in events:
        if event is None:
            problems.append(f"line {number} is cut or damaged: log the run again")
        elif event["key"] == "submission_division" and division not in (None, event["value"]):
            problems.append(
                f"line {number}: the log is for the {shown(event['value'])} division, not "
                f"{division}: change --division"
            )
        elif event["key"] == "run_start" and event["metadata"].get("samples_before"):
            problems.append(
                f"line {number}: the run continues another after "
                f"{event['metadata']['samples_before']} samples: resume from a run folder with "
                f"its log"
            )
    return problems


def run_checker(
    name: str, *options: str, files: Mapping[str, str], tree: Path | None = None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a checker of mlperf_logging on ``files``, name and text; raise TimeoutExpired.

    It runs in a private folder that holds only these, with the rights of confined.py: it can read
    nothing else but Python's own files and ``tree``, which it may change.
    """
    spec = importlib.util.find_spec("mlperf_logging")
    assert spec is not None and spec.origin is not None
    command = [sys.executable, "-I", "-B", confined.__file__, str(Path(spec.origin).parents[1])]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        if tree is not None:
            environment["BERTBENCH_TREE"] = str(tree.resolve())
        for file, text in files.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")
        said = Path(home) / "stdout", Path(home) / "stderr"  # files: their length is bounded
        with said[0].open("xb") as out, said[1].open("xb") as err:
            done = subprocess.run(
                [*command, name, *options], cwd=folder, env=environment, timeout=timeout_s,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in said]
    return subprocess.CompletedProcess(done.args, done.returncode, *texts)


def _run_checker(events: Iterable[dict[str, Any]], ruleset: str) -> tuple[bool, list[str]]:
    """Return whether the checker accepts the events, and its findings.

    It gets the events as they were read here, so that no line can mean something else to it.
    """
    text = "".join(f"{TOKEN}{json.dumps(event)}\n" for event in events)
    options = ("--usage", "training", "--ruleset", ruleset, "--quiet", LOG)
    try:
        done = run_checker("compliance_checker", *options, files={LOG: text}, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False, [f"the checker took more than {_TIMEOUT_S} s"]
    if done.returncode == 0:
        return True, []
    if "Traceback" in done.stderr:
        return False, [f"the checker itself failed: {shown(done.stderr.strip().splitlines()[-1])}"]
    report = done.stderr.rpartition("WARNING -  ")[2].partition("\nERROR - FAILED")[0]
    return False, report.split(_SEPARATOR) if report else []


def _sentence(message: str, events: Sequence[tuple[int, dict[str, Any] | None]]) -> str:
    count = _COUNT.fullmatch(message)
    if count:
        return _miscounted(count[1], count[2].replace("'", ""), int(count[3] or 0), count[4] or "")
    if message.startswith("Failed checks for eval_accuracy"):
        return _missed(events)
    failed = _CHECK.match(message)
    if failed:
        intact = [number for number, event in events if event is not None]
        where = intact[int(failed[2])] if int(failed[2]) < len(intact) else "?"
        return f"line {where}: {failed[1]} breaks the rule `{failed[3].strip()}`"
    if message.startswith("failed test: sorted(s['initialized_tensors'])"):
        return "weights_initialization does not name exactly the 398 tensors of BERT-large"
    fault = _FAULT.match(message)
    if fault:  # the rule cannot be applied to a value of this type
        return f"the rule `{fault[1].strip()}` cannot be applied to: {shown(fault[2])}"
    return shown(message.splitlines()[0])


def _miscounted(rule: str, names: str, found: int, rest: str) -> str:
    if found:
        return (
            f"{names} occurs {found} times{shown(rest)}: a log holds one run; give each run a "
            f"separate file"
        )
    fix = "log it once" if rule == "EXACTLY" else "log at least one"
    if _UNFINISHED & set(names.replace(" or ", " ").split()):
        fix = "the run was cut short; resume it, or run it again"
    return f"{names} is missing: {fix}"


def _missed(events: Sequence[tuple[int, dict[str, Any] | None]]) -> str:
    seen = [
        (event["value"], event["metadata"].get("epoch_num"))
        for _, event in events
        if event is not None
        and event["key"] == "eval_accuracy"
        and isinstance(event["value"], (int, float))
    ]
    best = "no evaluation"
    if seen:
        best = "best {:.5f} after {} samples".format(*max(seen, key=itemgetter(0)))
    return (
        f"no eval_accuracy in [{TARGET}, 1) ({best}): a closed run must reach the target; train "
        f"longer, or use --division open"
    )
