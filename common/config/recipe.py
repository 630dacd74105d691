# SPDX-License-Identifier: Apache-2.0
"""Recipe (may change the result; hashed), Impl (speed only), RunOptions (where and how).

A preset is a function that returns all three; flags override single fields; the origin of every
value is kept. Nothing here imports torch, so that ``list`` and ``describe`` are instant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertbench.common.config.limits import check_ranges
from bertbench.common.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Base of every benchmark's recipe: frozen values that may change the result."""

    global_batch: int
    """Sequences per optimizer step, over all devices."""
    attention_mask: str | None = None
    """Sparse attention: NAME or NAME:key=value (`bertbench masks`), or a saved mask (.json);
    None: dense."""
    extend_positions: Literal["tile"] | None = None
    """Starting weights with fewer positions than the model: tile repeats the learnt ones, as
    Longformer began (Beltagy et al. 2020); None refuses them."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Impl:
    """The implementation: changes the speed, and the result only by rounding."""

    precision: Literal["auto", "amp", "fp32", "tf32", "bf16", "fp16", "fp8"] = "auto"
    """amp is the device's best of bf16 and fp16; auto is amp where the device has one of them,
    else its fastest float32 mode. Anything else that the device lacks is refused."""
    kernels: str = "auto"
    """auto takes the backend's fastest; plain is the reference; see `bertbench doctor`."""
    micro_batch: int | Literal["auto"] | None = None
    """Sequences per device and pass; default: the largest up to the preset's that divides the
    global batch; auto: the largest that fits the device's memory. Accumulation follows."""
    max_micro_batch: int = 8
    """Upper bound for the default micro-batch."""
    eval_batch_size: int = 32
    """Sequences per device and evaluation pass."""
    cache_eval_data: bool = True
    """Keep the evaluation set in memory after the first evaluation."""
    dist_backend: str | None = None
    """Collective library; default: the backend's own."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are added over ranks, as FSDP's option of this name; bf16 sends half
    the bytes (DDP's bf16_compress_hook)."""
    optimizer_sharding: Literal["none", "zero1"] = "none"
    """zero1 divides the optimizer's state among the processes, which changes no number (ZeRO,
    stage 1); none keeps all of it on each."""
    compile: str | None = None
    """A compiler of the backend; default: none."""
    num_threads: int | None = None
    """Host threads per process; default: cores / local processes."""
    init_loss_scale: float = 2.0**16
    """fp16 only: the first loss scale."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Device, files, checkpoints and outputs of a run."""

    backend: str = "auto"
    """auto takes the first accelerator that works and never the CPU, which is cpu_ref (or cpu)."""
    seed: int = 42
    """Seeds initialisation, data order and dropout; recorded, not part of the recipe's hash."""
    output_dir: Path = Path("results")
    """Records are written to <output_dir>/<system>/<benchmark>/<run>/."""
    system: str | None = None
    """Name of the system in the records; default: made from the device's name."""
    resume: str | None = None
    """A run folder, a checkpoint folder, or `last` (the newest of this recipe)."""
    log_freq: int = 10
    """Steps between reports; losses are read from the device only then."""
    skip_checkpoint: bool = False
    """Write no checkpoints."""
    keep_n_most_recent_checkpoints: int = 2
    """Older ones are deleted."""
    num_samples_per_checkpoint: int = 500_000
    """Samples between checkpoints."""
    min_samples_to_start_checkpoints: int = 0
    """No checkpoint before this many samples."""
    max_minutes: float | None = None
    """Stop (status below_quality) after this much training time."""
    config: Path | None = None
    """TOML file with a recipe and flags by name, as the settings.toml of a record; flags win."""
    dry_run: bool = False
    """Make the checks of the run, print its plan and an estimate of its needs, and stop."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """Print the sentence at the end only; the record has all."""
    peaks: Path | None = None
    """Peak rates of devices for MFU, besides the built-in backends/peaks.toml."""
    tensorboard: Path | None = None
    """Folder for TensorBoard events, one folder a run; needs the package tensorboard."""
    track: str | None = None
    """mlflow:URI, mlflow:FOLDER or wandb:PROJECT: also send the run there; needs that package."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class DataOptions(RunOptions):
    """Options of benchmarks that read files, start from weights, or make synthetic data."""

    data: Path | None = None
    """Root of the data set (the launcher's DATA): shards, evaluation set, config, checkpoint."""
    bert_config_path: Path | None = None
    """bert_config.json (or the folder it is in): must agree with the recipe's model."""
    init_checkpoint: Path | None = None
    """Weights to start from: a file, or a Hugging Face model's folder, whose config.json counts."""
    synthetic: bool = False
    """Random tokens with the real mix of lengths, for pure speed runs."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named recipe, as `bertbench list` shows it and `run` starts from it."""

    name: str
    benchmark: str
    summary: str
    recipe: Recipe
    impl: Impl = field(default_factory=Impl)
    run: RunOptions = field(default_factory=RunOptions)
    data: str = ""
    """The data it needs and its source."""
    duration: str = ""
    """The expected time, with the machine."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A preset with its overrides applied."""

    preset: Preset
    recipe: Recipe
    impl: Impl
    run: RunOptions
    origins: Mapping[str, str] = field(default_factory=dict)
    """Flat field name -> default | preset | config | flag | environment | data."""
    notes: tuple[str, ...] = ()
    """Notes on flags that were accepted but have no effect."""

    def fitted(self, recipe: Recipe) -> Settings:
        """Return the settings with the recipe that the data allows: where it differs, from it."""
        before, after = plain(self.recipe), plain(recipe)
        origins = {name: "data" for name, value in after.items() if value != before[name]}
        return dataclasses.replace(self, recipe=recipe, origins={**self.origins, **origins})

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for config.json."""
        return {
            "preset": self.preset.name,
            "benchmark": self.preset.benchmark,
            "recipe": plain(self.recipe),
            "impl": plain(self.impl),
            "run": plain(self.run),
            "origins": dict(self.origins),
            "notes": list(self.notes),
        }


def plain(value: Any) -> Any:
    """Return dataclasses, paths and tuples as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def recipe_hash(recipe: Recipe, **inputs: str | None) -> str:
    """Return the first 16 hex digits of the sha256 over the recipe and its inputs' hashes.

    ``inputs`` are the hashes of data set, checkpoint and attention mask; two results are the same
    benchmark only if this agrees. Raises BadInput for a recipe with a number that no record may
    hold.
    """
    try:
        check_ranges(recipe)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return hash_values(type(recipe).__name__, plain(recipe), inputs)


LATER = {
    "extend_positions": None, "weight_sparsity": None, "quantization": None, "schedule": "linear",
    "pruning": "magnitude", "calibration": "percentile", "calibration_percentile": 99.99,
    "distillation": 0.0, "distillation_temperature": 2.0,
}  # fmt: skip
"""Fields of recipes that came after the first records, and the values that stood for them."""
BEFORE: Mapping[str, Any] = LATER | {"reduce_dtype": "fp32", "optimizer_sharding": "none"}
"""The same with the fields of implementations."""


def hash_values(kind: str, values: Mapping[str, Any], inputs: Mapping[str, str | None]) -> str:
    """Return ``recipe_hash`` for the plain values of a record.

    The attention mask counts by its content, among the inputs: not by its name or file's place.
    Records from before one of the fields ``LATER`` lack it: its value before leaves it out.
    """
    before = {name for name, value in LATER.items() if values.get(name, value) == value}
    left_out = {"attention_mask"} | before
    values = {name: value for name, value in values.items() if name not in left_out}
    text = json.dumps(
        {"kind": kind, "recipe": values, "inputs": dict(inputs)},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


CHOSEN = ("flag", "config")
"""Origins of values that the user gave."""


def origins(
    settings: Mapping[str, Any], preset: Preset, given: Mapping[str, str]
) -> dict[str, str]:
    """Return the origin of each value of recipe, impl and run, by flat field name.

    ``given`` are the origins of those that the user gave.
    """
    result: dict[str, str] = {}
    for part in ("recipe", "impl", "run"):
        chosen, base = settings[part], getattr(preset, part)
        _origins(chosen, base, given, result)
    return result


def _origins(chosen: Any, base: Any, given: Mapping[str, str], result: dict[str, str]) -> None:
    for f in dataclasses.fields(chosen):
        value = getattr(chosen, f.name)
        if dataclasses.is_dataclass(value):
            _origins(value, getattr(base, f.name), given, result)
            continue
        default = f.default_factory() if callable(f.default_factory) else f.default
        if f.name in given:
            result[f.name] = given[f.name]
        elif value == default:
            result[f.name] = "default"
        else:
            result[f.name] = "preset"
