# SPDX-License-Identifier: Apache-2.0
"""Facts about the device of a run, for the record and for the reader of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, DeviceInfo, Telemetry

EXPECTED = ("native", "bf16", "power")
"""Capabilities whose absence is a note at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The recorded facts of the device; unknown is None."""

    backend: str
    verified: str
    """hardware, simulator or documents: where the backend has run."""
    simulated: bool
    collective: str | None
    """None: one process."""
    device_checks: Mapping[str, str]
    """The findings of ``Backend.verify_precision``."""
    telemetry: str | None

    @classmethod
    def of(
        cls, backend: Backend, *, device: DeviceInfo, telemetry: Telemetry | None,
        checks: Mapping[str, str], world_size: int, dist_backend: str | None,
    ) -> DeviceFacts:  # fmt: skip
        """Return the facts of ``device``; raises Unsupported for another collective library."""
        collective = backend.resolve_collective(dist_backend)
        return cls(
            backend=backend.name, verified=backend.verified, simulated=device.simulated,
            collective=None if world_size == 1 else collective, device_checks=dict(checks),
            telemetry=None if telemetry is None else telemetry.source,
        )  # fmt: skip


def device_notes(
    backend: Backend, device: DeviceInfo, checks: Mapping[str, str], gelu: str | None
) -> list[str]:
    """Return notes on what the device lacks, and on what its results are worth.

    ``gelu`` is the form that the model asks for; ``checks`` come from ``verify_precision``.
    """
    known = backend.capabilities.notes
    notes = [f"{what}: {known[what]}" for what in EXPECTED if what in known]
    if gelu == "erf" and checks.get("gelu", gelu) != gelu:
        why = f" ({checks['gelu_note']})" if "gelu_note" in checks else ""
        notes.append(
            f"the model's GELU is the exact one, the device computes {checks['gelu']}{why}"
        )
    if device.simulated:
        notes.append("simulated device: its figures are not results")
    elif backend.verified == "documents":
        notes.append(
            f"untested backend: {backend.name} was written from its vendor's documents and has run "
            f"on no device known to us; `pytest tests/contract --backend {backend.name}` tests it"
        )
    return notes


def fallback_notes(fallbacks: Mapping[str, int] | None) -> list[str]:
    """Return a note on the operations that the host computed during the rehearsal."""
    if not fallbacks:
        return []
    counted = ", ".join(f"{op} ({n})" for op, n in sorted(fallbacks.items()))
    return [f"computed by the host in the device's place, with times in the rehearsal: {counted}"]
