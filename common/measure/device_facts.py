# SPDX-License-Identifier: Apache-2.0
"""What the device really did and is, for the record and for the reader of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertbench.backends.base import Backend, DeviceInfo, Telemetry
    from bertbench.common.training.distributed import World

EXPECTED = ("native", "bf16", "power")
"""Capabilities whose absence is told at the start."""


def device_facts(
    backend: Backend,
    world: World,
    *,
    device: DeviceInfo,
    telemetry: Telemetry | None,
    checks: Mapping[str, str],
    dist_backend: str | None,
) -> dict[str, Any]:
    """Values for the record. Unknown is None: ``fallbacks`` until a rehearsal has looked."""
    return {
        "backend": backend.name,
        "verified": backend.verified,
        "simulated": device.simulated,
        "collective": None if world.size == 1 else backend.resolve_collective(dist_backend),
        "device_checks": dict(checks),
        "telemetry": None if telemetry is None else telemetry.source,
        "fallbacks": None,
    }


def device_notes(
    backend: Backend, device: DeviceInfo, checks: Mapping[str, str], gelu: str
) -> list[str]:
    """What a user would expect and this device does not give, and what its results are worth.

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
        notes.append("simulated device: its figures are no result")
    elif backend.verified == "documents":
        notes.append(
            f"untested backend: {backend.name} was written from its vendor's documents and has run "
            f"on no device known to us; `pytest tests/contract --backend {backend.name}` tests it"
        )
    return notes


def fallback_notes(fallbacks: Mapping[str, int] | None) -> list[str]:
    """What the rehearsal found that the host computed instead."""
    if not fallbacks:
        return []
    counted = ", ".join(f"{op} ({n})" for op, n in sorted(fallbacks.items()))
    return [f"computed by the host in the device's place, with times in the rehearsal: {counted}"]
