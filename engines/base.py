# SPDX-License-Identifier: Apache-2.0
"""The contract of an inference engine: it computes the logits of an exported model.

An engine is loaded once per process. It honours every option or refuses it, and never computes a
quantized model in another precision without a refusal. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertbench.common.errors import Unsupported, install
from bertbench.common.files import why
from bertbench.engines.exported import Exported

CPU = "CPU"
"""The provider of every engine that computes on the host's processor."""
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class Batch(NamedTuple):
    """B sequences, padded to L tokens."""

    input_ids: IntArray
    """int64 [B, L]."""
    input_mask: IntArray
    """int64 [B, L], 1 for a token, 0 for padding."""
    segment_ids: IntArray
    """int64 [B, L]."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine computes; None and empty leave a choice to it."""

    provider: str = "CPU"
    """The execution provider or device, by the engine's own name."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    num_threads: int = 1
    max_batch: int = 1
    """Sequences of the largest batch that will be run."""
    max_length: int = 384
    """Tokens of the longest sequence that will be run."""


class Engine(ABC):
    """One exported model, ready to run on one device."""

    name: ClassVar[str]
    package: ClassVar[str]
    """The module that it needs."""
    extra: ClassVar[str]
    """The extra of bertbench that installs it."""

    @classmethod
    def absent(cls) -> str | None:
        """Return why it cannot be used, with the fix, or None; imports nothing."""
        if importlib.util.find_spec(cls.package) is not None:
            return None
        what = f"engine {cls.name}: package {cls.package} is not installed"
        return f"{what}: {install(cls.extra)}"

    @classmethod
    def module(cls) -> ModuleType:
        """Return the engine's package; raises Unsupported with the fix where it is missing."""
        if (problem := cls.absent()) is not None:
            raise Unsupported(problem)
        try:
            return importlib.import_module(cls.package)
        except Exception as error:  # a vendor's build, whose libraries may be missing
            raise Unsupported(f"engine {cls.name}: import {cls.package}: {why(error)}") from error

    @classmethod
    @abstractmethod
    def check(cls, options: EngineOptions) -> None:
        """Raise Unsupported for options that cannot be honoured here; loads no model."""

    @classmethod
    @abstractmethod
    def load(cls, exported: Exported, options: EngineOptions) -> Engine:
        """Return the engine with the model loaded; raises Unsupported as ``check``.

        Also where the device would compute the linear layers of a quantized model in floating
        point, or other inputs and outputs are found than those of ``Exported``.
        """

    @abstractmethod
    def run(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        """Return the start and end logits, float32 [B, L] each; those of padding are undefined."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return facts for the record as JSON values; unknown ones are None.

        Keys of every engine: ``version``, ``provider``, ``num_threads``, ``device`` (its name, None
        for the host's processor), ``linear_int8`` and ``linear_float`` (linear layers of the
        encoder by the precision that they run in), ``int8_share`` of them, and ``operators`` of the
        optimized graph (name -> number).
        """


def require_int8(name: str, exported: Exported, facts: Mapping[str, Any], remedy: str) -> None:
    """Raise Unsupported where a quantized model's linear layers do not run in INT8.

    ``facts`` are those of ``describe``; unknown counts (None) pass, and are recorded as unknown.
    """
    integer, floating = facts["linear_int8"], facts["linear_float"]
    if exported.quantization is None or integer is None:
        return
    if floating or not integer:
        raise Unsupported(
            f"engine {name} would compute {floating} of the {floating + integer} linear layers of "
            f"{exported.folder} in floating point, though the model is quantized: {remedy}"
        )
