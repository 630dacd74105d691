# SPDX-License-Identifier: Apache-2.0
"""Vendors' command-line tools as scripts that answer with captured outputs."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CAPTURED = Path(__file__).with_name("captured")

IXSMI = """
import json, sys
table = json.load(open({table!r}))
fields = next(a for a in sys.argv if a.startswith("--query-gpu=")).split("=")[1].split(",")
assert "--format=csv,noheader" in sys.argv
for field in fields:
    if field not in table[0]:
        print(f'Field "{{field}}" is not a valid field to query.')
        sys.exit({refusal})
for row in table:
    print(", ".join(row[field] for field in fields))
"""


def captured(name: str) -> str:
    """A captured output, without the comment on where it comes from."""
    lines = (CAPTURED / name).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("# "))


def script(path: Path, body: str) -> Path:
    """An executable of that text in Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -SE\n{body}")
    path.chmod(0o755)
    return path


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make ``folder`` the place where tools are looked for first."""
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def answers(folder: Path, name: str, outputs: dict[str, str]) -> Path:
    """A tool that prints one of ``outputs`` for the arguments that are its key, or fails."""
    return script(
        folder / name,
        f"import sys\noutputs = {outputs!r}\nasked = ' '.join(sys.argv[1:])\n"
        "if asked not in outputs:\n    sys.exit(f'unknown: {asked}')\n"
        "sys.stdout.write(outputs[asked])\n",
    )


def ixsmi(folder: Path, rows: list[dict[str, str]], refusal: int = 2) -> Path:
    """An ``ixsmi`` with these devices; it exits with ``refusal`` if asked for another field."""
    folder.mkdir(exist_ok=True)
    table = folder / "ixsmi.json"
    table.write_text(json.dumps(rows))
    return script(folder / "ixsmi", IXSMI.format(table=str(table), refusal=refusal))


def bi_v150(power: str = "gpu.power.draw") -> list[dict[str, str]]:
    """The rows of the captured table, as the fields of a query."""
    lines = [line.strip("|\n ") for line in captured("ixsmi_bi_v150.txt").splitlines()]
    starts = [i for i, line in enumerate(lines) if re.match(r"\d+ +Iluvatar", line)]
    rows = []
    for number, start in enumerate(starts):
        name, _, clocks = (cell.strip() for cell in lines[start].split("|"))
        state, memory, busy = (cell.strip() for cell in lines[start + 1].split("|"))
        core, ram = clocks.split()
        rows.append(
            {
                "index": str(number),
                "uuid": f"GPU-{number}0000000",
                "name": name.split(maxsplit=1)[1],
                "driver_version": "4.1.0",
                "temperature.gpu": state.split()[1],
                power: state.split()[3],
                "memory.used": memory.split("/")[0].strip(),
                "utilization.gpu": busy.split()[0],
                "clocks.current.sm": core,
                "clocks.current.memory": ram,
            }
        )
    return rows


def hlml(utilization: Any, reasons: int = 0) -> ModuleType:
    """pyhlml 1.24 for two Gaudis whose module ids are not their indices."""
    module = ModuleType("pyhlml")
    for name, value in {
        "Init": lambda: None,
        "DeviceGetCount": lambda: 2,
        "DeviceGetHandleByIndex": lambda index: index,
        "DeviceGetModuleID": lambda device: {0: 6, 1: 3}[device],
        "DeviceGetPowerUsage": lambda device: 98_000 + device,
        "DeviceGetTotalEnergyConsumption": lambda device: 5_000_000,
        "DeviceGetMemoryInfo": lambda device: SimpleNamespace(used=2**30),
        "DeviceGetTemperature": lambda device, sensor: {0: 28}[sensor],
        "DeviceGetUtilizationRates": lambda device: utilization,
        "DeviceGetClockInfo": lambda device, kind: {0: 1600}[kind],
        "DeviceGetCurrentClocksThrottleReasons": lambda device: reasons,
    }.items():
        setattr(module, f"hlml{name}", value)
    return module
