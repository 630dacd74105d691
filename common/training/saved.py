# SPDX-License-Identifier: Apache-2.0
"""Check a checkpoint before it is used: its state by a schema, its tensors by the model and the
optimizer that they are for.

Checksums show that a file is as it was written; these checks, that a run can continue from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.model.weight_files import is_finite

_LARGEST = 1 << 53
"""Of any count: beyond, it is not a number that was counted."""
_SWITCHES = frozenset(("fused", "foreach", "capturable", "differentiable", "param_names"))
"""Of an optimizer's group: they choose an implementation, and the same numbers."""
_COUNTED = ("lr", "step", "updates")
"""Of an optimizer's group: they change from step to step."""


def check_state(state: Any, groups: Mapping[str, Any]) -> None:
    """Raise BadInput where a checkpoint's ``state`` is not of a run, or not of its tensors."""
    state = _mapping(state, "state", ("progress", "scaler", "optimizer", "world_size"))
    world = _count(state["world_size"], "world_size", low=1)
    ranks = sum(name.startswith("rank_") for name in groups)
    missing = {"model", "optimizer", f"rank_{world - 1:04d}"} - set(groups)
    if ranks != world or missing:
        raise BadInput(f"the checkpoint's world_size is {world} and it has {ranks} ranks' states")
    counts = ("step", "samples", "skipped_steps", "next_eval_samples", "next_checkpoint_samples")
    progress = _mapping(state["progress"], "progress", (*counts, "position"))
    step, samples, skipped, *_ = [_count(progress[name], name) for name in counts]
    if skipped > step or samples < step or bool(samples) != bool(step):
        raise BadInput(
            f"the checkpoint's progress cannot be: {step} steps, {skipped} of them skipped, "
            f"{samples} samples"
        )
    if progress["position"] is not None:
        position = _mapping(progress["position"], "position", ())
        for name, value in position.items():
            _count(value, f"position {shown(name, 30)}", high=(1 << 64) - 1)
    elif step:
        raise BadInput("the checkpoint's progress has no position in the data")
    _mapping(state["scaler"], "scaler", ())
    _check_optimizer(_mapping(state["optimizer"], "optimizer", ("state", "param_groups")), progress)


def _check_optimizer(optimizer: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    saved = optimizer["param_groups"]
    for group in saved if isinstance(saved, list) else [None]:
        group = _mapping(group, "param_groups", ("params",))
        indices = group["params"]
        if not isinstance(indices, list) or any(type(index) is not int for index in indices):
            raise BadInput(f"the checkpoint's optimizer has parameters {shown(indices, 60)}")
        _number(group.get("lr", 0.0), "lr")
        for name in ("step", "updates"):
            if name in group:
                check_updates(_count(group[name], f"optimizer's {name}"), progress)
    for index, entry in _mapping(optimizer["state"], "optimizer's state", ()).items():
        if any(
            value is not None
            for value in _mapping(entry, f"state of {shown(index, 20)}", ()).values()
        ):
            raise BadInput(f"the checkpoint's optimizer has no tensor for {shown(entry, 60)}")


def check_updates(updates: float, progress: Mapping[str, Any]) -> None:
    """Raise BadInput where the optimizer counted other updates than the run."""
    step, skipped = progress["step"], progress["skipped_steps"]
    if not step - skipped <= updates <= step:
        raise BadInput(
            f"the checkpoint's optimizer counts {updates:g} updates and its run {step} steps, "
            f"{skipped} of them skipped"
        )


def check_length(progress: Mapping[str, Any], *, named: int, most: int, batch: int) -> None:
    """Raise BadInput where the progress is not of step ``named``, or beyond ``most`` steps."""
    step, samples = progress["step"], progress["samples"]
    if step != named:
        raise BadInput(f"the checkpoint's progress is of step {step}, its folder of step {named}")
    if 0 < most < step or samples > step * batch:  # most is 0 where nothing is trained
        raise BadInput(
            f"the checkpoint's {step} steps and {samples} samples are beyond the recipe's {most} "
            f"steps of {batch}"
        )


def check_tensors(what: str, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise BadInput where ``saved`` has other names, shapes [...] or types than ``wanted``.

    Also where a floating-point number is not finite.
    """
    for names, state in ((wanted.keys() - saved, "lacks"), (saved.keys() - wanted, "also has")):
        if names:
            raise BadInput(
                f"the checkpoint's {what} {state} {len(names)} tensors, such as "
                f"{shown(min(names), 80)}: use the recipe that wrote the checkpoint"
            )
    for name, tensor in saved.items():
        _check_tensor(f"{what}: {shown(name, 80)}", tensor, wanted[name])


def _check_tensor(name: str, saved: Tensor, wanted: Tensor) -> None:
    if saved.shape != wanted.shape or saved.dtype != wanted.dtype:
        raise BadInput(
            f"the checkpoint's {name} is {_text(saved)}, this run's {_text(wanted)}: use the "
            f"recipe that wrote the checkpoint"
        )
    if not is_finite(saved):
        raise BadInput(f"the checkpoint's {name} holds NaN or infinity: resume from an earlier one")


def check_groups(saved: list[Any], current: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the ``current`` groups of an optimizer with the ``saved`` ones' counts.

    Raises BadInput when the saved ones have other parameters or other constants.
    """
    if [group["params"] for group in saved] != [group["params"] for group in current]:
        raise BadInput(
            f"the checkpoint's optimizer has groups of {[len(g['params']) for g in saved]} "
            f"parameters, this model's of {[len(g['params']) for g in current]}: use the recipe "
            f"that wrote the checkpoint"
        )
    for before, now in zip(saved, current, strict=True):
        for key in before.keys() & now.keys() - _SWITCHES - set(_COUNTED):
            value = list(now[key]) if isinstance(now[key], tuple) else now[key]
            if before[key] != value and before[key] != now[key]:
                raise BadInput(
                    f"the checkpoint's optimizer has {key} {shown(before[key], 60)}, this run's "
                    f"{shown(now[key], 60)}: use the recipe that wrote the checkpoint"
                )
    return [
        now | {key: before[key] for key in _COUNTED if key in before}
        for before, now in zip(saved, current, strict=True)
    ]


def check_scaler(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise BadInput where the loss scaler's state is not like ``wanted``, or cannot be."""
    if saved.keys() != wanted.keys():
        raise BadInput(
            "the checkpoint has no state of a loss scaler: resume in the precision of that run"
        )
    for name, value in saved.items():
        _number(value, f"scaler's {name}")
        if not value and wanted[name]:
            raise BadInput(f"the checkpoint's scaler's {name} is 0")


def expected_moments(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor] | None:
    """Return tensors like those that Adam or LAMB keeps for a parameter [...]; None for others."""
    if "betas" not in group:
        return None
    moments = {"exp_avg": parameter, "exp_avg_sq": parameter}
    return moments | ({"step": torch.zeros(())} if "amsgrad" in group else {})


def _mapping(value: Any, name: str, keys: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadInput(f"the checkpoint's {name} is {shown(value, 60)}, not an object")
    missing = [key for key in keys if key not in value]
    if missing:
        raise BadInput(f"the checkpoint's {name} lacks {missing[0]}")
    return value


def _count(value: Any, name: str, *, low: int = 0, high: int = _LARGEST) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BadInput(
            f"the checkpoint's {name} is {shown(repr(value), 60)}, not a whole number from {low} up"
        )
    return value


def _number(value: Any, name: str) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise BadInput(
            f"the checkpoint's {name} is {shown(repr(value), 60)}, not a number from 0 up"
        )


def _text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
