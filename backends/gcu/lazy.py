# SPDX-License-Identifier: Apache-2.0
"""Enflame GCU through the older, lazy stacks: ``torch_dtu``, and ``torch_gcu`` as it first was.

They collect operations into a graph, which the optimizer's step cuts and runs; the device is
called ``xla``. Written from EnflameTechnology/ModelZoo (commits afc077c to 53f1190, BERT's
``run_squad.py``) and never run: the public releases of that stack are for Python 3.6 to 3.8 and
for a torch older than this package supports, as ``probe`` reports. Known limitations: host tensors
and sums outside DDP go through torch.distributed, which that stack does not use, and the device's
random state cannot be saved.
"""

from __future__ import annotations

import functools
import importlib
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bertbench.backends.accelerator import one_line
from bertbench.backends.base import Backend, Capabilities, DeviceInfo, Probe, Telemetry
from bertbench.backends.gcu.backend import float_precision, recorded
from bertbench.backends.gcu.telemetry import VISIBLE, driver_version, find_sensors
from bertbench.common.errors import Unsupported
from bertbench.common.measure.telemetry import Sampler


class LazyGcu(Backend):
    """The lazy ``torch_gcu``; ``Dtu`` below differs in names only."""

    name, device_type, package, collective = "gcu", "xla", "torch_gcu", "eccl"
    visible_devices_env = VISIBLE
    verified = "documents"
    functions: ClassVar[str] = "torch_gcu"
    """The module that holds optimizer_step, unlazy and the device's constructor."""
    device_constructor: ClassVar[str] = "gcu_device"
    no_power_reason = ""

    def __init__(self, local_rank: int = 0) -> None:
        super().__init__(local_rank)
        self.device = getattr(self.api, self.device_constructor)(local_rank)
        self._local_rank, self._world_size = local_rank, 1
        self._model: nn.Module | None = None

    @property
    def api(self) -> Any:
        """``functions``, imported."""
        return importlib.import_module(self.functions)

    @property
    def module(self) -> ModuleType:
        """The package itself, since torch has no module for the device."""
        assert self.package is not None
        return importlib.import_module(self.package)

    # -- identity -----------------------------------------------------------------------------
    @classmethod
    def probe(cls) -> Probe:
        why = cls.absent()
        if why:
            return Probe(False, why)
        try:
            importlib.import_module(cls.functions)
        except Exception as error:
            return Probe(
                False,
                f"package {cls.package} failed to load: {one_line(error)} (the public releases of "
                f"this lazy stack are for Python 3.6 to 3.8 and a torch older than 2.10; this is "
                f"Python {platform.python_version()}, torch {torch.__version__})",
            )
        try:
            count = cls.device_count()
        except Exception as error:
            return Probe(False, f"no working device: {one_line(error)}")
        many = "device" if count == 1 else "devices"
        return Probe(count > 0, f"{count} {many}, lazy" if count else "no device")

    @classmethod
    def device_count(cls) -> int:
        """Return the package's count; 1 where it has a device but no count."""
        package = importlib.import_module(cls.package or cls.functions)
        if hasattr(package, "device_count"):
            return int(package.device_count())
        getattr(importlib.import_module(cls.functions), cls.device_constructor)(0)
        return 1

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        notes = {
            "bf16": "the lazy stack's autocast takes no dtype: it is float16",
            "device_timer": "work starts when the graph is cut: only the host's clock is right",
            "memory_stats": "the lazy stack does not count memory",
            "compile": "every graph is compiled already",
        }
        floats = float_precision(notes)
        telemetry = self.telemetry()
        if telemetry is None:
            notes["power"] = self.no_power_reason
        return Capabilities(
            precisions=("fp16", floats),
            collective=self.collective,
            telemetry=() if telemetry is None else (telemetry.source,),
            notes=notes,
        )

    def describe(self) -> DeviceInfo:
        version = getattr(self.module, "__version__", None)
        named = getattr(self.module, "get_device_name", None)
        return DeviceInfo(
            backend=self.name,
            name=str(named(self._local_rank)) if named else self.name,
            index=self._local_rank,
            driver=driver_version(self._local_rank),
            runtime=f"{self.package} {version}" if version else self.package,
            extras=recorded() | {"generation": "lazy"},
        )

    def telemetry(self, period_s: float = 0.1) -> Telemetry | None:
        try:
            found = find_sensors(self._local_rank)
        except Unsupported as error:
            self.no_power_reason = str(error)
            return None
        return Sampler(found.read, source=found.source, period_s=max(period_s, found.period_s))

    # -- the graph ----------------------------------------------------------------------------
    def synchronize(self) -> None:
        """Run the collected operations and wait for them."""
        if hasattr(self.api, "sync_lived_tensor"):
            self.api.sync_lived_tensor(self.device)
            self.api.synchronize(self.device)
        else:
            token = torch.zeros(1, device=self.device)
            self.api.unlazy([token])
            token.cpu()  # graphs run in order: the last one's value is there when all have run

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Apply one update and cut the graph after it.

        The loss is outside that graph: reading it costs a second, small one.
        """
        if scaler.is_enabled():
            scaler.step(optimizer)
            scaler.update()
            model = self._model if self._model is not None else nn.Module()
            self.api.unlazy(self.api.collect_amp_training_params(model, optimizer, scaler))
        else:
            self.api.optimizer_step(optimizer, [], model=self._model, **self.run_mode())

    def run_mode(self) -> dict[str, Any]:
        """Return how to cut: one process waits for the previous graph; several need not."""
        modes = self.api.JitRunMode
        return {"mode": modes.ASYNC if self._world_size > 1 else modes.SAFEASYNC}

    def compile(self, model: nn.Module, compiler: str | None) -> None:
        """Keep the model, which cutting a graph needs; the stack compiles by itself."""
        super().compile(model, compiler)
        self._model = model

    # -- numerics -----------------------------------------------------------------------------
    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        with self._part("amp").autocast():
            yield

    def grad_scaler(self, precision: str, init_scale: float = 2.0**20) -> torch.amp.GradScaler:
        """Return the stack's own scaler: on overflow it steps with zero gradients.

        So no graph depends on the overflow. Unlike with torch's scaler, momentum and weight decay
        still apply in that step.
        """
        if precision != "fp16":
            return torch.amp.GradScaler("cpu", enabled=False)
        scaler: torch.amp.GradScaler = self._part("amp").GradScaler(
            init_scale=init_scale, use_zero_grad=True
        )
        return scaler

    def rng_state(self) -> dict[str, Tensor]:
        """Return the host's state only: the stack does not expose the device's."""
        return {"cpu": torch.get_rng_state()}

    def set_rng_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that ``rng_state`` returned: uint8 [N] each."""
        torch.set_rng_state(state["cpu"])

    # -- the cluster --------------------------------------------------------------------------
    def init_process_group(self, collective: str | None = None, **kwargs: Any) -> None:
        """Join through the stack's own distributed module, from torchrun's variables."""
        distributed = self._part("distributed")
        distributed.init_process_group(
            backend=self.resolve_collective(collective), init_method="env://"
        )
        self._world_size = distributed.get_world_size()

    def wrap_ddp(self, module: nn.Module, reduce_dtype: str = "fp32") -> nn.Module:
        """Wrap in the stack's own DDP, as Enflame's scripts do; raise Unsupported but for fp32."""
        if reduce_dtype != "fp32":
            raise Unsupported(
                f"{self.name}: no --reduce_dtype {reduce_dtype}: the lazy stack's own DDP has no "
                f"communication hooks that are known. Leave it out"
            )
        wrap: Callable[..., nn.Module] = self._part("nn.parallel").DistributedDataParallel
        return wrap(module, device_ids=[self._local_rank], find_unused_parameters=True)

    def _part(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")


class Dtu(LazyGcu):
    """``torch_dtu``, of TopsRider releases for T20 and T21: "dtu" is gcu's older name."""

    package = "torch_dtu"
    functions = "torch_dtu.core.dtu_model"
    device_constructor = "dtu_device"

    def run_mode(self) -> dict[str, Any]:
        return {"safe_async": self._world_size == 1}
