# SPDX-License-Identifier: Apache-2.0
"""Plays Enflame's torch_gcu by name, on the simulated accelerator. Nothing here is a GCU.

Names and variables are those that torch_gcu 2.10 documents; what the real one does by default
(narrow int64, tanh GELU) is done here by default as well.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bertbench.backends.simulated import collective
from bertbench.backends.simulated.device import install
from bertbench.common.errors import Unsupported

SIMULATED = True
__version__ = "2.10.0+simulated"


def _refuse_beside_the_real_one() -> None:
    try:
        real = importlib.metadata.version("torch_gcu")
    except importlib.metadata.PackageNotFoundError:
        here = Path(__file__).parent.resolve()
        others = (Path(entry, "torch_gcu").resolve() for entry in sys.path if entry)
        found = next((p for p in others if p.is_dir() and p != here), None)
        if found is None:
            return
        real = str(found)
    raise Unsupported(
        f"torch_gcu is installed ({real}): the simulated one does not stand before it. Unset "
        "BERTBENCH_SIMULATE to use the real one."
    )


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def _amp(device_type: str) -> ModuleType:
    """``torch.gcu.amp``: autocast and GradScaler bound to the device."""
    amp = ModuleType(f"torch.{device_type}.amp")

    class autocast(torch.autocast):
        def __init__(self, **options: Any) -> None:
            options.setdefault("dtype", torch.float16)
            super().__init__(device_type, **options)

    class GradScaler(torch.amp.GradScaler):
        def __init__(self, **options: Any) -> None:
            super().__init__(device_type, **options)

    for each in (autocast, GradScaler):
        setattr(amp, each.__name__, each)
    return amp


if __name__ == "torch_gcu":  # as a part of this repository it is only source code
    _refuse_beside_the_real_one()
    gcu = install(
        "gcu",
        tf32=_on("ENFLAME_ENABLE_TF32"),
        gelu="erf" if _on("ENFLAME_PT_GELU_ERF_ENABLE") else "tanh",
        int64="keep" if _on("TORCH_GCU_ENABLE_INT64_AND_UINT64") else "narrow",
        visible_devices_env="TOPS_VISIBLE_DEVICES",
    )
    gcu.amp = _amp("gcu")  # type: ignore[attr-defined]
    collective.register("eccl", "gcu")
