# SPDX-License-Identifier: Apache-2.0
"""MLPerf's checkers execute code from paths that a log names: none of it may come from a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertbench.common.errors import BadInput
from bertbench.common.exchange.export_mlperf import check_package
from bertbench.common.exchange.rcp import check_convergence
from bertbench.common.mlperf import compliance, confined
from bertbench.common.mlperf.compliance import check_log
from bertbench.common.results.validate import validate
from tests.unit.results.mlperf_logs import made
from tests.unit.results.mlperf_runs import make
from tests.unit.test_record import forge

EVIL = """
- BEGIN:
    CODE: "open({marker!r}, 'w').close()"
"""


def event(key: str, value: object, key_text: str | None = None, value_text: str = "") -> str:
    value_text = value_text or json.dumps(value)
    return (
        f':::MLLOG {{"namespace": "", "time_ms": 5, "event_type": "POINT_IN_TIME", '
        f'"key": {key_text or json.dumps(key)}, "value": {value_text}, "metadata": {{}}}}'
    )


def escaped(text: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"'


def forms(bad: str) -> dict[str, list[str]]:
    """Lines that make the checker read ``bad`` as a division or a benchmark."""
    good = event("submission_division", "closed")
    return {
        "plain": [event("submission_division", bad)],
        "second line": [good, event("submission_division", bad)],
        "first line": [event("submission_division", bad), good],
        "escaped value": [event("submission_division", bad, None, escaped(bad))],
        "escaped key": [event("", bad, escaped("submission_division"))],
        "two keys": [event("submission_division", bad, '"submission_division", "value": "open"')],
        "after a prefix": [f"0: {event('x', 1)} {event('submission_division', bad)}"],
        "behind a return": [f"{event('x', 1)}\r{event('submission_division', bad)}"],
        "a benchmark": [good, event("submission_benchmark", bad)],
        "a list": [event("submission_division", [bad])],
        "another case": [event("submission_division", "Closed")],
        "with a blank": [event("submission_division", "closed ")],
    }


@pytest.mark.parametrize("form", forms(""))
def test_no_line_leads_to_code_outside(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(compliance, "_run_checker", lambda *a: started.append(a) or (True, []))
    log = tmp_path / "result_0.txt"
    log.write_bytes("\n".join(forms("../../evil")[form]).encode())
    assert any("was not started" in text for text in check_log(log, "5.0.0")), form
    assert not started
    with pytest.raises(BadInput, match="not one of MLPerf's"):
        check_convergence([log] * 3, "5.0.0")
    place = tmp_path / "tree" / "results" / "system" / "bert"
    place.mkdir(parents=True)
    log.rename(place / "result_0.txt")
    assert "not one of MLPerf's" in check_package(tmp_path / "tree", "5.0.0")[0]


def test_a_record_that_holds_code_runs_none(tmp_path: Path) -> None:
    path = make(tmp_path, seed=1)
    marker = tmp_path / "marker"
    path.chmod(0o755)
    evil = EVIL.format(marker=str(marker))
    (path / "evil_common.yaml").write_text("")
    division = f"{'../' * 12}{str(path)[1:]}/evil"
    forge(path, "evil_common.yaml", lambda text: evil)  # sealed with the record
    forge(
        path, "result_0.txt", lambda text: text.replace('"value": "open"', f'"value": "{division}"')
    )
    (found,) = [p.text for p in validate(path) if p.severity == "error" and "started" in p.text]
    assert "submission_division is" in found
    assert not marker.exists()


def confined_python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with the rights that a checker has."""
    text = f"""
import os, sys
sys.path.insert(0, {str(Path(confined.__file__).parent)!r})
import confined
confined.limit()
if not confined.restrict([os.path.dirname(os.__file__)], [os.getcwd()]):
    sys.exit(77)
{code}
"""
    command = [sys.executable, "-I", "-c", text]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("open({secret!r}).read()", "PermissionError"),
        ("open({secret!r}, 'w')", "PermissionError"),
        ("os.listdir(os.path.dirname({secret!r}))", "PermissionError"),
        ("os.execv(sys.executable, ['python', '-c', ''])", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', {port}), 5)", "Error"),
        ("bytearray(5 << 30)", "MemoryError"),
        ("open('large', 'wb').write(bytes(65 << 20))", "OSError"),
    ],
)
def test_the_checkers_rights(tmp_path: Path, code: str, refusal: str) -> None:
    import socket

    (tmp_path / "own").mkdir()
    secret = tmp_path / "secret"
    secret.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        filled = code.format(secret=str(secret), port=server.getsockname()[1])
        done = confined_python(tmp_path / "own", filled)
    if done.returncode == 77:
        pytest.skip("this kernel has no Landlock")
    assert refusal in done.stderr.strip().splitlines()[-1], done.stderr
    assert secret.read_text() == "x"
    assert confined_python(tmp_path / "own", "open('new', 'w').write('1')").returncode == 0


def test_the_checker_gets_the_lines_that_were_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(made()))
    before = set(tmp_path.iterdir())
    assert not any("not started" in text for text in check_log(log, "1.0.0"))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "none"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    if kind == "fifo":
        os.mkfifo(log)
    elif kind == "device":
        log.symlink_to("/dev/zero")
    elif kind == "folder":
        log.mkdir()
    with pytest.raises(BadInput, match="cannot read the MLPerf log"):
        check_log(log, "5.0.0")
    with pytest.raises(BadInput, match="cannot read the MLPerf log"):
        check_convergence([log] * 3, "5.0.0")


def test_deep_and_huge_lines_are_damaged_ones(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deep = event("x", 1, None, "[" * 100_000)
    log.write_text("\n".join([*made(), deep, event("x", 1, None, "9" * 5000)]))
    found = check_log(log, "1.0.0")
    assert sum("is cut or damaged" in text for text in found) == 2
