# SPDX-License-Identifier: Apache-2.0
"""bertbench: a vendor-portable BERT benchmark suite. These are its public names.

    record = bertbench.run("mini", backend="cpu_ref", synthetic=True, max_steps=20)
    print(record.value("sequences_per_second"))
    print(bertbench.compare("results/a", "results/b").as_dict())

Everything in ``__all__`` is public: it changes only with a note in CHANGELOG.md. Modules below
``bertbench.backends``, ``bertbench.benchmarks`` and ``bertbench.common`` may change at any time.
A name is imported when it is first used, so that importing this package does not import torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

# torch would import every installed vendor package when it is imported itself, and one that is
# broken would take all other devices, and the CPU, down with it. A backend imports its own. It is
# set whatever the user's environment says: 1 is torch's default and no request for a device
# (--backend is), and the processes that this one starts inherit it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

if TYPE_CHECKING:
    from bertbench.api import compare, load_records, run
    from bertbench.backends.accelerator import Accelerator
    from bertbench.backends.base import Backend, Capabilities, DeviceInfo, Probe, Telemetry
    from bertbench.backends.sensors import Sensors, quantity, run_tool, visible_entry
    from bertbench.benchmarks import presets, resolve
    from bertbench.benchmarks.base import Benchmark
    from bertbench.common.config.recipe import (
        DataOptions,
        Impl,
        Preset,
        Recipe,
        RunOptions,
        Settings,
    )
    from bertbench.common.data.batch import Tokens
    from bertbench.common.distributed.world import World
    from bertbench.common.errors import BadInput, BertbenchError, DivergedError, Unsupported
    from bertbench.common.measure.flops import encoder_flops
    from bertbench.common.measure.metric import Metric
    from bertbench.common.model.bert import BertEncoder, initialize
    from bertbench.common.model.config import BertConfig
    from bertbench.common.model.ops import Ops
    from bertbench.common.optim.schedule import warmup_linear
    from bertbench.common.results.compare import Comparison
    from bertbench.common.results.result import Result
    from bertbench.common.results.validate import Problem, validate
    from bertbench.common.training.events import EvalEvent, Observer, RunSummary, StepEvent
    from bertbench.common.training.task import OptimizerOptions, Plan, Source, Task

_MODULES = {
    "api": ("compare", "load_records", "run"),
    "backends.accelerator": ("Accelerator",),
    "backends.base": ("Backend", "Capabilities", "DeviceInfo", "Probe", "Telemetry"),
    "backends.sensors": ("Sensors", "quantity", "run_tool", "visible_entry"),
    "benchmarks": ("presets", "resolve"),
    "benchmarks.base": ("Benchmark",),
    "common.config.recipe": ("DataOptions", "Impl", "Preset", "Recipe", "RunOptions", "Settings"),
    "common.data.batch": ("Tokens",),
    "common.errors": ("BadInput", "BertbenchError", "DivergedError", "Unsupported"),
    "common.measure.flops": ("encoder_flops",),
    "common.measure.metric": ("Metric",),
    "common.model.bert": ("BertEncoder", "initialize"),
    "common.model.config": ("BertConfig",),
    "common.model.ops": ("Ops",),
    "common.optim.schedule": ("warmup_linear",),
    "common.results.compare": ("Comparison",),
    "common.results.result": ("Result",),
    "common.results.validate": ("Problem", "validate"),
    "common.distributed.world": ("World",),
    "common.training.events": ("EvalEvent", "Observer", "RunSummary", "StepEvent"),
    "common.training.task": ("OptimizerOptions", "Plan", "Source", "Task"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: RUF022  # in the order of a reader's questions
    # run a benchmark, read and compare records
    "run", "presets", "resolve", "load_records", "compare", "validate",
    "Result", "Comparison", "Problem", "Settings",
    # write a backend
    "Accelerator", "Backend", "Capabilities", "DeviceInfo", "Probe", "Sensors", "Telemetry",
    "quantity", "run_tool", "visible_entry",
    # write a benchmark
    "Benchmark", "Impl", "Preset", "Recipe", "RunOptions", "DataOptions",
    "Task", "Source", "Plan", "OptimizerOptions", "World",
    "BertConfig", "BertEncoder", "Ops", "Tokens", "initialize", "encoder_flops", "warmup_linear",
    "Metric", "Observer", "StepEvent", "EvalEvent", "RunSummary",
    # errors
    "BertbenchError", "BadInput", "Unsupported", "DivergedError",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bertbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bertbench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
