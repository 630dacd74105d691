# SPDX-License-Identifier: Apache-2.0
"""Count a device's operations by phase and kind, and the host's synchronisations with it."""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from bertbench.common.errors import Unsupported
from tracing.launches import LIMITS, Limits
from tracing.traffic import DEVICE, Call, on_device, tensors

PRODUCT, ATTENTION, MEMORY, COPY = "matrix product", "attention", "memory-bound", "copy"
KINDS = (PRODUCT, ATTENTION, MEMORY, COPY)
MASKS = (torch.bool, torch.uint8)
WAITS = {"nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result's size or value the host needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Assumed rates: bytes/s, FLOP/s by kind and direction, and the host's seconds per launch."""

    bandwidth: float
    products: float
    eight_bit_products: float
    attention_forward: float
    attention_backward: float
    launch_s: float


@dataclass(slots=True)
class Cost:
    """Sums over operations."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0
    """Each operation's larger of FLOPs / rate and bytes / bandwidth."""

    def add(self, other: Cost, times: int = 1) -> None:
        """Add ``times`` the other's sums."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + times * value)


class Tally(TorchDispatchMode):
    """Counts while ``phase`` is set. Enter it inside FakeTensorMode.

    An operation that needs a value of the device gets a stand-in: 0 for a number, True for a
    comparison, every element where a mask or condition selects some.
    """

    def __init__(self, root: Path, rates: Rates, limits: Limits = LIMITS[4]):
        """``root`` holds the code whose lines are named."""
        super().__init__()
        self.phase: str | None = None
        self.costs: defaultdict[tuple[str, str, str], Cost] = defaultdict(Cost)
        """By phase, kind and operation."""
        self.waits: Counter[tuple[str, str, str]] = Counter()
        """Synchronisations by phase, operation and file:line."""
        self.squares = 0
        """Sum of the squared lengths of a micro-batch's sequences: attention without padding."""
        self._root, self._rates, self._limits = root, rates, limits

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("prim", "prims", "profiler"):
            return func(*args, **kwargs)
        result = self._result(func, name, args, kwargs)
        if self.phase is None:
            return result
        call = Call(func, args, kwargs, result)
        devices = call.devices
        if DEVICE not in devices or call.is_view:
            return result
        if len(devices) > 1 and name in ("_to_copy", "copy_", "_foreach_copy_"):
            if not call.values.get("non_blocking"):
                self.wait(f"{name} between host and device")
            self.costs[self.phase, COPY, name].add(Cost(1, call.bytes()))
            return result
        self.costs[self.phase, self._kind(call), name].add(self._cost(call))
        return result

    def launched(self, name: str, moved: int) -> None:
        """Count a memory-bound kernel that is none of torch's."""
        if self.phase is not None:
            cost = Cost(1, moved, 0, moved / self._rates.bandwidth)
            self.costs[self.phase, MEMORY, name].add(cost)

    def wait(self, what: str) -> None:
        """Count a synchronisation, with the innermost line of our code that causes it."""
        if self.phase is not None:
            self.waits[self.phase, what, self._where()] += 1

    def _kind(self, call: Call) -> str:
        return PRODUCT if call.is_product else ATTENTION if call.is_attention else MEMORY

    def _cost(self, call: Call) -> Cost:
        moved, flops = call.bytes(), call.flops(self.squares)
        rate = self._rates.products
        if call.name == "_scaled_mm":
            rate = self._rates.eight_bit_products
        if call.is_attention:
            rate = self._rates.attention_forward
            if call.is_backward:
                rate = self._rates.attention_backward
        seconds = max(moved / self._rates.bandwidth, flops / rate)
        return Cost(call.launches(self._limits), moved, flops, seconds)

    def _result(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the operation's result, or a stand-in; count synchronisations."""
        if not any(map(on_device, tensors((*args, *kwargs.values())))):
            return func(*args, **kwargs)
        first = args[0]
        if name == "_local_scalar_dense":
            self.wait(name)
            return False if first.dtype == torch.bool else 0.0 if first.is_floating_point() else 0
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(map(_is_mask, args[1])):
                value = args[2] if len(args) > 2 else None
                # A mask and one number of the host are a masked_fill, which needs no size.
                if not (isinstance(value, Tensor) and value.numel() == 1 and not on_device(value)):
                    self.wait(f"{name} with a mask")
                indices = [part for index in args[1] for part in self._by_number(index)]
                args = (first, indices, *args[2:])
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait(name)
        elif name in WAITS:
            self.wait(name)
            if name == "equal":
                return True
            if name == "nonzero":
                return first.new_empty((first.numel(), first.dim()), dtype=torch.int64)
            if name == "masked_select":
                return first.new_empty(torch.broadcast_shapes(first.shape, args[1].shape).numel())
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Unsupported(
                f"{self._where()}: {name} makes the host wait for a value of the device, and "
                "tracing cannot go on without that value"
            ) from error

    @staticmethod
    def _by_number(index: Tensor | None) -> list[Tensor | None]:
        """Return an index unchanged, or a mask as the indices of all its elements."""
        if index is None or not _is_mask(index):
            return [index]
        return [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.dim())]

    def _where(self) -> str:
        own = str(Path(__file__).parent)
        frame = sys._getframe()
        while frame is not None:
            name = os.path.realpath(frame.f_code.co_filename)
            ours = name.startswith(f"{self._root}/") and "site-packages" not in name
            if ours and not name.startswith(own):
                return f"{Path(name).relative_to(self._root)}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return "outside our code"


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in MASKS
