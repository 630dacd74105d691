# SPDX-License-Identifier: Apache-2.0
"""A collective library for the simulated accelerator: gloo on the device's memory.

A process group written in Python gets all of torch's tensors: with ``cpu:gloo,gcu:eccl`` host
tensors come here too, and go to gloo as they are.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup, Store, Work
from torch.futures import Future

calls: Counter[str] = Counter()
"""Collective -> calls with tensors of the device, in this process."""


def register(backend_name: str, device_type: str) -> None:
    """Make ``init_process_group(backend_name)`` work for tensors of ``device_type``."""

    def create(store: Store, rank: int, size: int, timeout: timedelta) -> _SimulatedProcessGroup:
        return _SimulatedProcessGroup(store, rank, size, timeout, backend_name, device_type)

    dist.Backend.register_backend(backend_name, create, devices=[device_type])


class _Work(Work):
    """gloo's work; its future holds the device's tensors, on which DDP goes on."""

    def __init__(self, work: Work, outputs: Any, devices: list[int | str | torch.device]) -> None:
        super().__init__()
        self._work, self._outputs, self._devices = work, outputs, devices

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return bool(self._work.wait(timeout))

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def is_success(self) -> bool:
        return bool(self._work.is_success())

    def result(self) -> Any:
        return self._outputs

    def get_future(self) -> Future[Any]:
        """Wait, and return a complete future.

        A callback would run in gloo's thread, which outlives the interpreter.
        """
        future: Future[Any] = Future(devices=self._devices)
        self._work.wait()
        future.set_result(self._outputs)
        return future


class _SimulatedProcessGroup(ProcessGroup):
    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: timedelta,
        backend_name: str,
        device_type: str,
    ) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # torch's stub lacks this form
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)
        # A thread of gloo drops a work a moment after it is done. Were it the last to hold it,
        # it would want the interpreter for what the work holds, and that may be ending.
        self._recent: deque[Work] = deque(maxlen=16)
        self._name, self._type, self._label = backend_name, device_type, backend_name

    def getBackendName(self) -> str:
        return self._name

    def getGroupName(self) -> str:
        return self._label

    def setGroupName(self, name: str) -> None:
        self._label = name

    group_name = property(getGroupName, setGroupName)

    def _run(self, collective: str, *tensors: Any, options: tuple[Any, ...]) -> Work:
        """Run gloo's ``collective`` on the same memory; the first of ``tensors`` is the output."""
        devices: set[torch.device] = set()
        views = [_on_host(each, self._type, devices) for each in tensors]
        work: Work = getattr(self._gloo, collective)(*views, *options)
        self._recent.append(work)
        if not devices:
            return work
        calls[collective] += 1
        return _Work(work, tensors[0], sorted(devices, key=str))

    def barrier(self, *options: Any, **named: Any) -> Work:
        torch.accelerator.synchronize()
        work: Work = self._gloo.barrier(*options, **named)
        self._recent.append(work)
        return work


def _on_host(value: Any, device_type: str, devices: set[torch.device]) -> Any:
    """Return the same memory as CPU tensors, through any nesting of lists."""
    if isinstance(value, Tensor):
        if value.device.type != device_type:
            return value
        devices.add(value.device)
        return torch.ops.bertbench_simulated.host_view(value.detach())
    return [_on_host(each, device_type, devices) for each in value]


def _forward(collective: str, tensors: int) -> Callable[..., Work]:
    def call(self: _SimulatedProcessGroup, *arguments: Any, **named: Any) -> Work:
        options = (*arguments[tensors:], *named.values())
        return self._run(collective, *arguments[:tensors], options=options)

    call.__name__ = collective
    return call


# Collective -> number of leading arguments that are tensors; the names torch has used over time.
for _names, _tensors in (
    ("allreduce allreduce_coalesced broadcast reduce send recv recv_anysource", 1),
    ("allgather allgather_coalesced gather scatter reduce_scatter alltoall", 2),
    ("_allgather_base _reduce_scatter_base alltoall_base", 2),
):
    for _name in _names.split():
        setattr(_SimulatedProcessGroup, _name, _forward(_name, _tensors))
for _new, _old in (
    ("all_gather_single", "_allgather_base"),
    ("reduce_scatter_single", "_reduce_scatter_base"),
):
    setattr(_SimulatedProcessGroup, _new, _forward(_old, 2))
