# SPDX-License-Identifier: Apache-2.0
"""Metrics: value, unit, direction, repeats, clock, scope and definition.

``SHARED`` defines the metrics that all benchmarks share; a benchmark adds its quality metrics with
``Metric(...)``. A record omits unmeasured metrics: ``metric(name, None)`` raises TypeError.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Direction = Literal["higher", "lower", "none"]
Scope = Literal["global", "per-device", "per-process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured value."""

    name: str
    value: float
    unit: str
    direction: Direction
    """Whether higher or lower is better; ``none``: the value is never ranked."""
    n: int = 1
    """Number of processes that the value covers."""
    ci_low: float | None = None
    ci_high: float | None = None
    """95 % interval over the processes; None for n < 6."""
    clock: str
    """``host-sync`` (monotonic, synchronised at both ends), ``device-event``, ``none``, ..."""
    scope: Scope
    definition: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, in the order above."""
        return dataclasses.asdict(self)


class _Shared(NamedTuple):
    unit: str
    direction: Direction
    clock: str
    scope: Scope
    definition: str


def _time(definition: str, clock: str = "host", scope: Scope = "global") -> _Shared:
    return _Shared("s", "lower", clock, scope, definition)


def _rate(unit: str, definition: str) -> _Shared:
    return _Shared(unit, "higher", "host-sync", "global", definition)


_TIMED = "the timed window: training only, evaluations and checkpoints excluded"
_USED = "model_flops_per_second (with an attention mask effective_flops_per_second)"

SHARED: dict[str, _Shared] = {
    "time_to_target_s": _time("run_start to run_stop of a run that reached its target"),
    "run_time_s": _time("run_start to run_stop, whether the target was reached or not"),
    "e2e_time_s": _time("start of the process to its last measurement"),
    "init_s": _time("init_start to init_stop: model, optimizer, process group, rehearsal"),
    "compile_s": _time("seconds spent in the compiler"),
    "eval_s": _time("sum over all evaluations, inside the timed run"),
    "checkpoint_s": _time("seconds that training waited for checkpoints: to copy and end them"),
    "checkpoint_write_s": _time("seconds of writing checkpoints, beside training"),
    "data_wait_s": _time("seconds that training waited for data, slowest rank of each report"),
    "gradient_all_reduce_s": _time(
        "adding a step's gradients over all ranks, in float32 buckets of 25 MiB, with nothing "
        "beside it: slowest rank, median of 5 behind one untimed, after the run. Within a step "
        "it costs less where the backward pass hides it, and more where both compete",
        clock="host-sync",
    ),
    "gradient_all_reduce_bytes": _Shared(
        *("bytes", "lower", "none", "per-process"),
        "a step's gradients of one process, as it gives them to the all-reduce: trained parameters "
        "x bytes of --reduce_dtype; a ring of N sends 2 (N - 1) / N of it from each process",
    ),
    "sequences_per_second": _rate("sequences/s", f"sequences trained in {_TIMED} / its seconds"),
    "sequences_per_second_e2e": _rate(
        "sequences/s", "sequences trained in this process / (run_start to run_stop)"
    ),
    "real_tokens_per_second": _rate(
        "tokens/s", f"tokens that are not padding, trained in {_TIMED} / its seconds"
    ),
    "padded_tokens_per_second": _rate(
        "tokens/s",
        f"sequences trained x maximum length, in {_TIMED} / its seconds; for comparison with "
        f"results that compute padding, or count it",
    ),
    "inference_sequences_per_second": _rate(
        "sequences/s",
        "sequences that the last evaluation put through the model / seconds from the first batch "
        "on the host to the last result on the device; scoring excluded",
    ),
    **{
        f"inference_latency_p{p}_s": _time(
            f"the seconds that {p} % of the last evaluation's full batches did not exceed "
            f"(nearest rank), all ranks, each from the batch on the host to its result on the "
            f"device",
            "host-sync",
            "per-process",
        )
        for p in (50, 90, 99)
    },
    "model_flops_per_second": _rate(
        "FLOP/s",
        f"matrix products of real tokens that training needs, forward and twice that for the "
        f"backward pass, heads only where they are needed (common/measure/flops.py, version 1), "
        f"in {_TIMED} / its seconds; dense-equivalent: with an attention mask, the FLOPs that the "
        f"dense model would need",
    ),
    "effective_flops_per_second": _rate(
        "FLOP/s",
        f"model FLOPs without the attention scores that the mask leaves out, counted for each "
        f"layer, head and sequence at its length, in {_TIMED} / its seconds; only with a mask",
    ),
    "mfu": _rate("1", f"{_USED} / (dense peak rate x devices)"),
    "mfu_calibrated": _rate(
        "1",
        f"{_USED} / (best matrix product that `bertbench calibrate` measured x devices)",
    ),
    "peak_memory_bytes": _Shared(
        "bytes", "lower", "none", "per-device", "largest over the devices of the peak of each"
    ),
    "energy_j": _Shared("J", "lower", "host", "global", "energy in the sampled windows"),
    "power_w": _Shared(
        "W", "lower", "host", "global", "energy in the sampled windows / their seconds"
    ),
    "throttled_s": _time(
        "seconds of the sampled windows in which the device said that it was held back; of the "
        "devices the one with most",
        scope="per-device",
    ),
    "temperature_max_c": _Shared(
        "C", "none", "none", "per-device", "highest reading in the sampled windows, any device"
    ),
}


def metric(name: str, value: float, *, note: str = "", **changed: Any) -> Metric:
    """Return a shared metric; raise TypeError without a value.

    ``note`` (e.g. the source of a power reading) is appended to the definition; ``changed``
    replaces other fields (``clock``, ``n``, an interval).
    """
    fields = SHARED[name]._asdict() | changed
    if note:
        fields["definition"] += f"; {note}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} has no value ({value!r}): leave an unmeasured metric out")
    return Metric(name=name, value=value, **fields)
