# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs utilisation (MFU), relative to published and to measured peak rates.

``bertbench calibrate`` writes the calibration; it applies to the same device and precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertbench.common.files import read_json, shown
from bertbench.common.measure.metric import Metric, metric

if TYPE_CHECKING:
    from bertbench.backends.peaks import Peak

CALIBRATION = "calibration.json"
CALIBRATION_VERSION = 1
LOWEST, HIGHEST = 1e6, 1e19
"""FLOP/s; the rates of devices are between them by far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The best rate of a calibration, and its origin."""

    flops_per_second: float
    file: str
    date: str
    what: str
    threads: str
    torch: str


def utilisation(
    flops_per_second: float | None, *, devices: int, peaks: Sequence[Peak],
    calibrated: Calibrated | None,
) -> list[Metric]:  # fmt: skip
    """Return ``mfu`` (one metric per source if they disagree) and ``mfu_calibrated``.

    Args:
        flops_per_second: model FLOPs of all devices, with an attention mask the effective ones;
            None: no metrics.
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
    return [_doubted(m) if m.value > 1 else m for m in metrics]


def _doubted(one: Metric) -> Metric:
    return replace(one, definition=f"{one.definition}; above 1: that peak is not this device's")


def find_calibration(
    folders: Sequence[Path], device: Mapping[str, Any], precision: str,
    notes: list[str] | None = None,
) -> Calibrated | None:  # fmt: skip
    """Return the calibration for this device and precision in the first of ``folders`` with one.

    ``device`` is a DeviceInfo as plain values. Files of other devices are passed over, and so are
    those that are not a calibration; ``notes`` gets a line for each of these.
    """
    for folder in folders:
        file = folder / CALIBRATION
        try:
            content = read_json(file)
            same = content["schema_version"] == CALIBRATION_VERSION
            for key in ("backend", "name", "simulated"):
                same = same and content["device"][key] == device[key]
            if not same or precision not in content["precisions"]:
                continue
            best = content["precisions"][precision]["best"]
            rate = best["flops_per_second"]
            if type(rate) not in (int, float) or not LOWEST <= rate <= HIGHEST:
                raise ValueError(f"a rate of {shown(rate, 40)} FLOP/s")
            return Calibrated(
                flops_per_second=float(rate),
                file=f"{folder.name}/{CALIBRATION}",
                date=shown(content["created_utc"], 40),
                what=shown(f"{best['model']} {best['layer']}, {best['product']}"),
                threads=shown(content["threads"], 20),
                torch=shown(content["torch"], 40),
            )
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if notes is not None:
                why = f"it lacks {error}" if isinstance(error, KeyError) else error
                notes.append(
                    f"no calibration is used from {shown(file)}: {shown(why, 120)}; "
                    f"`bertbench calibrate` writes it again"
                )
    return None
