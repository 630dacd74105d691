# SPDX-License-Identifier: Apache-2.0
"""hpu: Intel Gaudi through habana_frameworks.torch.

In lazy mode operations are collected until the step is marked: it is marked around the update and
before every wait, and the marks do nothing in eager mode. Names: Intel Gaudi's PyTorch
documentation and Hugging Face accelerate.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch

from bertbench.backends.accelerator import Accelerator
from bertbench.backends.hpu.telemetry import open_hlml
from bertbench.backends.sensors import Sensors, visible_entry
from bertbench.common.config.launched import number
from bertbench.common.errors import Unsupported


class Hpu(Accelerator):
    """One Gaudi: a process opens a single one, its local rank's, and calls it device 0."""

    name, device_type, package, collective = "hpu", "hpu", "habana_frameworks.torch", "hccl"
    visible_devices_env = "HABANA_VISIBLE_MODULES"

    def __init__(self, local_rank: int = 0) -> None:
        self._local_rank, world = local_rank, number("WORLD_SIZE")
        if local_rank and world == 1:
            raise Unsupported("hpu: which device to open comes from a launcher's variables only")
        if self.probe().ok:
            hccl = self._part("distributed.hccl")  # registers the collective
            if world > 1:
                hccl.initialize_distributed_hpu()  # chooses the module by the local rank
        super().__init__(0)

    @classmethod
    def absent(cls) -> str | None:
        # Asking for the submodule would import its parent.
        if importlib.util.find_spec("habana_frameworks") is None:
            return f"package {cls.package} is not installed"
        return None

    @classmethod
    def _part(cls, name: str) -> ModuleType:
        return importlib.import_module(f"{cls.package}.{name}")

    def _mark_step(self) -> None:
        self._part("core").mark_step()

    def synchronize(self) -> None:
        self._mark_step()
        self.module.synchronize()

    def seed(self, seed: int) -> None:
        super().seed(seed)
        self.module.manual_seed_all(seed)  # torch seeds the devices that it has itself

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self._mark_step()
        super().optimizer_step(optimizer, scaler)
        self._mark_step()

    def has_device_timer(self, notes: dict[str, str]) -> bool:
        notes["device_timer"] = "in lazy mode an event is recorded before the work is launched"
        return False

    def extras(self) -> dict[str, str]:
        lazy = os.environ.get("PT_HPU_LAZY_MODE")
        return super().extras() | ({} if lazy is None else {"PT_HPU_LAZY_MODE": lazy})

    def sensors(self) -> Sensors:
        visible = os.environ.get("HABANA_VISIBLE_MODULES")
        if number("WORLD_SIZE") > 1:
            return open_hlml(visible_entry(self._local_rank, visible))
        # Alone, a process opens whichever visible module is free.
        return open_hlml(visible if visible and visible.strip().isdecimal() else None)
