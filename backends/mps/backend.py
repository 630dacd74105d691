# SPDX-License-Identifier: Apache-2.0
"""mps: the GPU of an Apple chip, through the module in torch itself.

One device, no collective, no float64, memory shared with the host. Only root can read its power.
"""

from __future__ import annotations

import os

import torch

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.base import Probe
from bertbench.common.errors import Unsupported


class Mps(Accelerator):
    """Apple's GPU."""

    name, device_type = "mps", "mps"
    no_power_reason = "macOS reports the GPU's power to root only (powermetrics)"

    def __init__(self, local_rank: int = 0) -> None:
        if local_rank:
            raise Unsupported("mps has one device: run one process")
        super().__init__(local_rank)

    @classmethod
    def absent(cls) -> str | None:
        if torch.backends.mps.is_built():
            return None
        return f"torch {torch.__version__} was built without MPS (it is for macOS)"

    @classmethod
    def probe(cls) -> Probe:
        why = cls.absent()
        if why is None and not torch.backends.mps.is_available():
            why = "no Apple GPU, or macOS is too old for this torch"
        return Probe(False, why) if why else super().probe()

    def memory_bytes(self) -> int | None:
        """Return how much of the memory shared with the host Metal recommends a process to use."""
        return int(self.module.recommended_max_memory())

    def extras(self) -> dict[str, str]:
        # With it, operations that MPS lacks run on the host, and only a warning says so.
        fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK")
        return {} if fallback is None else {"PYTORCH_ENABLE_MPS_FALLBACK": fallback}
