# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs utilisation (MFU), relative to published and to measured peak rates.

``bertbench calibrate`` writes the calibration; it applies to the same device and precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertbench.common.measure.metric import Metric, metric

if TYPE_CHECKING:
    from bertbench.backends.peaks import Peak

CALIBRATION = "calibration.json"
CALIBRATION_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The best rate of a calibration, and its origin."""

    flops_per_second: float
    file: str
    date: str
    what: str
    threads: int
    torch: str


def utilisation(
    flops_per_second: float | None,
    *,
    devices: int,
    peaks: Sequence[Peak],
    calibrated: Calibrated | None,
) -> list[Metric]:
    """Return ``mfu`` (one metric per source if they disagree) and ``mfu_calibrated``.

    Args:
        flops_per_second: model FLOPs of all devices; None: no metrics.
        peaks: of one device, from differing sources; empty: no ``mfu``.
    """
    if flops_per_second is None:
        return []
    metrics = []
    for peak in peaks:
        one = metric(
            "mfu",
            flops_per_second / (peak.flops_per_second * devices),
            note=f"peak {peak.flops_per_second / 1e12:g} TFLOP/s in {peak.precision} "
            f"({peak.definition}), from: {peak.source}, {peak.date}",
        )
        if len(peaks) > 1:
            name = f"mfu_of_{peak.flops_per_second / 1e12:g}_tflops".replace(".", "_")
            one = replace(one, name=name)
        metrics.append(one)
    if calibrated is not None:
        note = (
            f"{calibrated.flops_per_second / 1e12:.4g} TFLOP/s ({calibrated.what}) with "
            f"torch {calibrated.torch} and {calibrated.threads} host threads; {calibrated.file} of "
            f"{calibrated.date}"
        )
        share = flops_per_second / (calibrated.flops_per_second * devices)
        metrics.append(metric("mfu_calibrated", share, note=note))
    return metrics


def find_calibration(
    folders: Sequence[Path], device: Mapping[str, Any], precision: str
) -> Calibrated | None:
    """Return the calibration for this device and precision in the first of ``folders`` with one.

    ``device`` is a DeviceInfo as plain values. Files of other devices and malformed ones are
    ignored.
    """
    for folder in folders:
        file = folder / CALIBRATION
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            same = content["schema_version"] == CALIBRATION_VERSION
            for key in ("backend", "name", "simulated"):
                same = same and content["device"][key] == device[key]
            if not same or precision not in content["precisions"]:
                continue
            best = content["precisions"][precision]["best"]
            return Calibrated(
                flops_per_second=float(best["flops_per_second"]),
                file=f"{folder.name}/{CALIBRATION}",
                date=content["created_utc"],
                what=f"{best['model']} {best['layer']}, {best['product']}",
                threads=content["threads"],
                torch=content["torch"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
