# SPDX-License-Identifier: Apache-2.0
"""The reference machines: medians of this repository's own records, for runs of the same recipe.

``results/machines.json`` is written by tools/readme_results.py. A comparison is with the machine
that has the same recipe and precision; without one there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bertbench.common.config.recipe import hash_values
from bertbench.common.files import read_json
from bertbench.common.measure.code import ROOT
from bertbench.common.results.result import HOST, Result

MACHINES = ROOT / "results" / "machines.json"
"""Absent in an installed package, which has no records."""


class Machine(NamedTuple):
    """A machine, and the medians of its runs of one recipe that reached their target."""

    recipe: str
    recipe_hash: str
    """With the hashes of its inputs, as in the records."""
    recipe_alone: str
    """The hash of the recipe without its inputs, as `bertbench describe` prints it."""
    precision: str
    device: str
    devices: int
    cores: int | None
    """Of a host that is the device itself; None for accelerators."""
    runs: int
    samples: float
    """Trained until the target."""
    time_to_target_s: float
    sequences_per_second: float

    @property
    def name(self) -> str:
        """``AMD EPYC, 2 cores``, or ``8 x NAME``."""
        name = self.device if self.devices == 1 else f"{self.devices} x {self.device}"
        return name if self.cores is None else f"{name}, {self.cores} cores"


def machines(path: Path | None = None) -> list[Machine]:
    """Return the machines in ``path`` (default: ``MACHINES``); none where it cannot be read."""
    try:
        return [Machine(**row) for row in read_json(path or MACHINES)["machines"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def reference(precision: str, **identity: str | None) -> Machine | None:
    """Return the machine with the most runs in this precision, of the same recipe.

    ``identity`` is ``recipe_hash`` or ``recipe_alone``; one that is unknown has no machine.
    """
    same = [
        m
        for m in machines()
        if m.precision == precision and all(getattr(m, k) == v for k, v in identity.items())
    ]
    return max(same, key=lambda m: m.runs, default=None)


def row(first: Result, medians: Mapping[str, float], runs: int) -> dict[str, Any]:
    """Return the row of ``runs`` like ``first``, whose ``medians`` are the last three fields."""
    kind, recipe = str(first.manifest["recipe_kind"]), first.config["recipe"]
    named = {
        "recipe": first.preset,
        "recipe_hash": first.recipe_hash,
        "recipe_alone": hash_values(kind, recipe, {}),
        "precision": first.precision,
        "device": first.device_name,
        "devices": first.num_devices,
        "cores": first.system["processor"]["cores"] if first.backend == HOST else None,
    }
    return {**named, "runs": runs, **medians}
