# SPDX-License-Identifier: Apache-2.0
"""`bertbench calibrate`: the rates that a device reaches in BERT's matrix products and in copies.

The best of these products is the honest denominator of a run's utilisation: it includes what no
data sheet does (clocks under load, the library), and exists where no sheet does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro

from bertbench import backends
from bertbench.common.errors import BadInput
from bertbench.common.files import write_atomic
from bertbench.common.measure.calibration import Effort, calibrate
from bertbench.common.measure.system import system_name
from bertbench.common.measure.utilisation import CALIBRATION
from bertbench.common.training.rehearsal import is_worthwhile

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Measure the device's matrix products at BERT's shapes, and its copies."""

    backend: str = "auto"
    """auto takes the first accelerator that works; cpu_ref must be named."""
    precision: tuple[str, ...] = ()
    """fp32, tf32, bf16, fp16; default: all that the device has."""
    output_dir: Path = Path("results")
    """Written to <output_dir>/<system>/calibration.json, where runs look for it."""
    system: str | None = None
    """Name of the system; default: made from the device's name, for one device."""
    num_threads: int | None = None
    """Host threads; default: torch's."""
    quick: bool = False
    """A quarter of the tokens and three spans: less exact."""
    json: bool = False
    """Print what was written as JSON."""


def main(args: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    options = tyro.cli(Options, args=args, prog="bertbench calibrate", use_underscores=True)
    backend = backends.resolve(options.backend)(0)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    info = backend.describe()
    content = calibrate(backend, options.precision, effort(backend, options.quick))
    path = options.output_dir / (options.system or system_name(info.name, 1)) / CALIBRATION
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error}. Choose another --output_dir.") from error
    if options.json:
        print(json.dumps(content | {"file": str(path)}))
    else:
        print(render(content))
        print(f"written to {path}")
    return 0


def effort(backend: Backend, quick: bool) -> Effort:
    """Enough work to fill an accelerator, or about a minute of a host."""
    device = is_worthwhile(backend) and not backend.describe().simulated
    tokens, copied = (16384, 1 << 28) if device else (1024, 1 << 26)
    return Effort(tokens // 4, 3, copied) if quick else Effort(tokens, 7, copied)


def render(content: dict[str, Any]) -> str:
    """A table for people."""
    device, precisions = content["device"], content["precisions"]
    best = {p: v["best"]["flops_per_second"] for p, v in precisions.items()}
    unit, name = (1e12, "TFLOP/s") if max(best.values()) >= 1e12 else (1e9, "GFLOP/s")
    lines = [f"{device['name']} on {device['backend']}, torch {content['torch']}, {name}"]
    lines.append(f"{'':<39}" + "".join(f"{p:>20}" for p in precisions))
    for same in zip(*(p["products"] for p in precisions.values()), strict=True):
        first = same[0]
        shape = f"{first['m']}x{first['n']}x{first['k']}"
        row = f"{first['model']:<6}{first['layer']:<17}{first['product']:<16}"
        cells = "".join(f"{_spread(p, 'flops_per_second', unit):>20}" for p in same)
        lines.append(f"{row:<39}{cells}  {shape}")
    lines.append("best    " + ", ".join(f"{p} {rate / unit:.4g}" for p, rate in best.items()))
    lines.append(f"copy    {_spread(content['copy'], 'bytes_per_second', 1e9)} GB/s")
    return "\n".join(lines)


def _spread(values: dict[str, float], key: str, unit: float) -> str:
    """Median and half of the spread."""
    half = (values["highest"] - values["lowest"]) / 2 / unit
    return f"{values[key] / unit:.4g} +-{half:.2g}"
