# SPDX-License-Identifier: Apache-2.0
"""Units, tools and ids that every reader of sensors shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bertbench.backends.sensors import (
    answering,
    local_entries,
    quantity,
    reports_board,
    run_tool,
    visible_entry,
)
from bertbench.common.errors import Unsupported


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("102 W", "W", 102.0),
        ("102000 mW", "W", 102.0),
        ("35000000 uW", "W", 35.0),
        ("35000000 \u00b5W", "W", 35.0),
        (" 68.50W ", "W", 68.5),
        ("1.2e2", "W", 120.0),
        ("0.00 W", "W", 0.0),
        ("157072 mJ", "J", 157.072),
        ("49120MiB", "bytes", 49120 * 2**20),
        ("49120 MB", "bytes", 49120 * 2**20),
        ("64 GiB", "bytes", 64 * 2**30),
        ("1024", "bytes", 1024.0),
        ("41 C", "C", 41.0),
        ("41\u2103", "C", 41.0),
        ("41 \u00b0C", "C", 41.0),
        ("-5 C", "C", -5.0),
        ("1500 MHz", "MHz", 1500.0),
        ("1.5GHz", "MHz", 1500.0),
        ("0.0 %", "%", 0.0),
        ("87%", "%", 87.0),
    ],
)
def test_a_number_is_converted_to_the_unit(text: str, unit: str, value: float) -> None:
    assert quantity(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "-", "--", "N/A", "[N/A]", "[Not Supported]", "Unknown Error", "nan", "inf", "1e999 W"],
)
def test_no_number_is_none_not_zero(text: str) -> None:
    assert quantity(text, "W") is None


def test_another_kind_of_unit_is_none() -> None:
    assert quantity("1500 MHz", "W") is None
    assert quantity("41 C", "%") is None
    assert quantity("102 W / 300 W", "W") is None


def test_an_unknown_target_unit_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        quantity("1", "furlongs")


def _tool(folder: Path, body: str) -> list[str]:
    path = folder / "fakesmi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return [str(path)]


def test_a_tools_output_is_returned(tmp_path: Path) -> None:
    assert run_tool([*_tool(tmp_path, 'echo "$LC_ALL $1"'), "-q"]) == "C -q\n"


def test_a_missing_tool_is_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^no-such-smi: not found$"):
        run_tool(["no-such-smi", "-q"])


def test_a_tool_that_may_not_be_run_says_so(tmp_path: Path) -> None:
    argv = _tool(tmp_path, "exit 0")
    Path(argv[0]).chmod(0o644)
    with pytest.raises(RuntimeError, match=r"^fakesmi: Permission denied$"):
        run_tool(argv)


def test_a_failing_tool_gives_its_first_line(tmp_path: Path) -> None:
    argv = _tool(tmp_path, "echo data; echo 'no driver' >&2; echo more >&2; exit 9")
    with pytest.raises(RuntimeError, match=r"^fakesmi: exit code 9: no driver$"):
        run_tool(argv)


def test_a_hanging_tool_is_killed_with_its_children(tmp_path: Path) -> None:
    # The child holds the tool's pipes, and a named one that ends when the child does.
    os.mkfifo(tmp_path / "life")
    life = os.open(tmp_path / "life", os.O_RDONLY | os.O_NONBLOCK)
    argv = _tool(tmp_path, f"(sleep 20; echo alive) > {tmp_path}/life & wait")
    with pytest.raises(RuntimeError, match=r"^fakesmi: no answer in 0.2 s$"):
        run_tool(argv, timeout_s=0.2)
    os.set_blocking(life, True)
    with os.fdopen(life) as stream:
        assert stream.read() == ""


@pytest.mark.parametrize(
    ("index", "value", "entry"),
    [
        (2, None, "2"),
        (1, "all", "1"),
        (0, "3", "3"),
        (1, "3, 5", "5"),
        (0, "GPU-5a1b,GPU-77", "GPU-5a1b"),
        (0, "MIG-3e0c", "MIG-3e0c"),
        (1, "0,DRS-9f", "DRS-9f"),
        (1, "2,0,-1,7", "0"),
    ],
)
def test_a_local_index_is_an_entry_of_the_variable(
    index: int, value: str | None, entry: str
) -> None:
    assert visible_entry(index, value) == entry


@pytest.mark.parametrize(("index", "value"), [(1, "3"), (0, ""), (0, "-1"), (2, "2,0,-1,7")])
def test_an_index_beyond_the_visible_devices_is_refused(index: int, value: str) -> None:
    with pytest.raises(Unsupported, match="does not exist"):
        visible_entry(index, value)


class VendorError(Exception):
    """Not a RuntimeError: like the errors of NVML and its look-alikes."""


def _fails() -> float:
    raise VendorError("GPU is lost")


def test_only_sensors_that_answer_are_read() -> None:
    answers: dict[str, Callable[[], float | None]] = {
        "power_w": lambda: 93.0,
        "temperature_c": _fails,
        "energy_j": lambda: None,
    }
    assert answering(answers)() == {"power_w": 93.0}


def test_without_any_sensor_the_first_reason_is_given() -> None:
    with pytest.raises(Unsupported, match=r"^power_w: VendorError: GPU is lost$"):
        answering({"power_w": _fails, "energy_j": lambda: None})
    with pytest.raises(Unsupported, match=r"^no sensor of this device answers$"):
        answering({"energy_j": lambda: None})


def test_a_sensor_that_is_lost_later_ends_the_sampling_not_the_process() -> None:
    working = True
    read = answering({"power_w": lambda: 93.0 if working else _fails()})
    working = False
    with pytest.raises(RuntimeError, match=r"^power_w: VendorError: GPU is lost$"):
        read()


def test_a_sensor_without_a_value_for_once_is_a_missing_key() -> None:
    values = [93.0, None, 94.0]
    read = answering({"power_w": lambda: values.pop(0)})
    assert [read(), read()] == [{}, {"power_w": 94.0}]


def test_the_devices_of_this_machines_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert local_entries("4,5,6") == ["4"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert local_entries("4,5,6") == ["4", "5"]


@pytest.mark.parametrize(
    ("run", "reporters"),
    [([0], [0]), ([1], [1]), ([0, 1], [0]), ([1, 0, 3], [0, 3]), ([0, 1, 2, 3], [0, 2])],
)
def test_a_card_of_two_chips_is_reported_once(run: list[int], reporters: list[int]) -> None:
    boards = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    assert [d for d in sorted(run) if reports_board(d, boards[d], run)] == reporters
