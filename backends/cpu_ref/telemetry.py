# SPDX-License-Identifier: Apache-2.0
"""Energy of the processor and its memory from RAPL, through Linux's powercap files.

Intel and recent AMD processors; usually readable by root only, and absent in most virtual
machines. It counts sockets and DRAM, not the node: such energy is not comparable with MLPerf's
node-level power. Format: Linux kernel, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bertbench.common.measure.telemetry import Sampler

ROOT = Path("/sys/class/powercap")


class _Domain:
    """One counter in microjoules that wraps to zero after ``max_energy_range_uj``."""

    def __init__(self, folder: Path) -> None:
        self.name = (folder / "name").read_text().strip()
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = self._raw()
        self._total = 0

    def joules(self) -> float:
        """Return the energy since construction; call it at least once per wrap (minutes)."""
        now = self._raw()
        step = now - self._last
        self._total += step if step >= 0 else step + self._range
        self._last = now
        return self._total * 1e-6

    def _raw(self) -> int:
        return int(self._file.read_text())


def rapl_problem(root: Path = ROOT) -> str | None:
    """Return why energy cannot be read here, or None."""
    return _open(root)[1]


def open_rapl(
    period_s: float = 0.1,
    root: Path = ROOT,
    clock: Callable[[], float] = time.monotonic,
) -> Sampler | None:
    """Return a sampler of all sockets and their memory, or None (see ``rapl_problem``)."""
    domains, _ = _open(root)
    if not domains:
        return None

    last: dict[str, float] = {}

    def read() -> dict[str, float]:
        now, joules = clock(), sum(domain.joules() for domain in domains)
        reading = {"energy_j": joules}
        if last and now > last["t"]:
            reading["power_w"] = (joules - last["energy_j"]) / (now - last["t"])
        last.update(t=now, energy_j=joules)
        return reading

    names = " + ".join(domain.name for domain in domains)
    source = f"RAPL energy counters ({names}); processor energy, not MLPerf's node energy"
    return Sampler(read, source=source, period_s=period_s, clock=clock)


def _open(root: Path) -> tuple[list[_Domain], str | None]:
    if not root.is_dir():
        return [], f"no {root}: this kernel or virtual machine does not expose RAPL"
    domains: list[_Domain] = []
    refused: list[str] = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            # `core` and `uncore` are parts of a package, and `psys` contains it: never add those.
            if name.startswith(("package", "dram")):
                domains.append(_Domain(folder))
        except (OSError, ValueError) as error:
            refused.append(f"{folder.name}: {error}")
    if refused:  # part of the energy would look like all of it
        return [], f"RAPL is not readable ({'; '.join(refused)}): grant read access to energy_uj"
    if not domains:
        return [], f"{root} has no RAPL package counters"
    return domains, None
