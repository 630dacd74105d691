# SPDX-License-Identifier: Apache-2.0
"""`bertbench calibrate`: the rates of a device in BERT's matrix products and in copies.

The highest of these rates is the denominator of a run's utilisation. It includes the clocks under
load and the library, which data sheets leave out.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertbench import backends
from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown, why, write_atomic
from bertbench.common.launch.threads import host_threads
from bertbench.common.measure.calibration import Effort, calibrate
from bertbench.common.measure.system import system_name
from bertbench.common.measure.utilisation import CALIBRATION
from bertbench.common.results.record import check_name
from bertbench.common.training.rehearsal import is_worthwhile

if TYPE_CHECKING:
    from bertbench.backends.base import Backend


def main(args: Sequence[str]) -> int:
    """Measure, write and print the rates; returns 1 if the disk refused the file in the end.

    Raises BadInput, before anything is measured, for a folder that cannot be written.
    """
    verb = parser("calibrate")
    verb.add_argument(
        "--backend",
        default="auto",
        help="auto takes the first working accelerator; cpu_ref (or cpu) is the CPU",
    )
    verb.add_argument(
        "--precision", nargs="+", default=[], metavar="P",
        help="fp32, tf32, bf16, fp16; default: all that the device has",
    )  # fmt: skip
    verb.add_output(
        "--output_dir",
        default=Path("results"),
        help="writes DIR/SYSTEM/calibration.json, which runs read",
    )
    verb.add_argument("--system", metavar="NAME", help="default: from the device's name, for one")
    verb.add_argument("--num_threads", type=int, metavar="N", help="host threads; default: a run's")
    verb.add_argument("--quick", action="store_true", help="a quarter of the tokens, three spans")
    options = verb.parse_args(args)
    if options.num_threads is not None and not 0 < options.num_threads <= 4096:
        raise BadInput(f"--num_threads {options.num_threads}: give a number of threads from 1")
    if options.system is not None:
        check_name("system", options.system)
    backend = backends.resolve(options.backend)(0)
    torch.set_num_threads(options.num_threads or host_threads(1))
    system = options.system or system_name(backend.describe().name, 1)
    path = options.output / system / CALIBRATION
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise BadInput(
            f"cannot write {shown(path)}: {why(error)}. Choose another --output."
        ) from error
    content = calibrate(backend, options.precision, effort(backend, options.quick))
    problem = None
    try:
        write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        problem = why(error)
    if options.json:
        print(json.dumps(content | {"file": None if problem else str(path)}))
    else:
        print(render(content))
    if problem is not None:
        print(
            f"bertbench calibrate: {shown(path)} could not be written: {problem}", file=sys.stderr
        )
        return 1
    if not options.json:
        print(f"wrote {path}")
    return 0


def effort(backend: Backend, quick: bool) -> Effort:
    """Return enough work to fill an accelerator, or about a minute of a host."""
    device = is_worthwhile(backend) and not backend.describe().simulated
    tokens, copied = (16384, 1 << 28) if device else (1024, 1 << 26)
    return Effort(tokens // 4, 3, copied) if quick else Effort(tokens, 7, copied)


def render(content: dict[str, Any]) -> str:
    """Return the table for people."""
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
    """Return the median and half of the spread."""
    half = (values["highest"] - values["lowest"]) / 2 / unit
    return f"{values[key] / unit:.4g} +-{half:.2g}"
