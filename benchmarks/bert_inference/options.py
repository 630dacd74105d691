# SPDX-License-Identifier: Apache-2.0
"""What an inference run is made with, in the three parts of a record's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bertbench.benchmarks.bert_inference.rules import Asked
from bertbench.common.config.recipe import plain
from bertbench.common.mlperf.inference import Profile, Scenario

BENCHMARK = "bert_inference"
Mode = Literal["accuracy", "performance", "both"]
MODES: tuple[Mode, ...] = ("accuracy", "performance", "both")


@dataclass(frozen=True, kw_only=True)
class InferenceRecipe:
    """What the result depends on, besides the model and the data."""

    scenario: Scenario
    profile: Profile = "official"
    min_duration_ms: float
    min_query_count: float
    latency_bound_ms: float | None = None
    """Server only."""
    max_seq_length: int
    doc_stride: int
    max_query_length: int
    lowercase: bool
    n_best_size: int = 20
    max_answer_length: int = 30
    target_f1: float | None = None
    """Percent; None: no target."""


@dataclass(frozen=True, kw_only=True)
class InferenceImpl:
    """How fast it is computed."""

    engine: str = "onnxruntime"
    provider: str = "CPU"
    provider_options: tuple[str, ...] = ()
    """KEY=VALUE each."""
    num_threads: int
    batch_tokens: int
    """The most of a batch, padding included."""
    padded: bool = False
    """Every sequence padded to max_seq_length, in the order of the queries."""


@dataclass(frozen=True, kw_only=True)
class InferenceRun:
    """Files, outputs, and the tests that are made."""

    export: Path
    predict_file: Path
    mode: Mode = "both"
    audit: Literal["TEST01"] | None = None
    user_conf: Path | None = None
    asked: Asked = dataclasses.field(default_factory=Asked)
    output_dir: Path = Path("results")
    system: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """The three parts, and the flags that were given."""

    recipe: InferenceRecipe
    impl: InferenceImpl
    run: InferenceRun
    flags: Collection[str] = ()

    @property
    def preset(self) -> str:
        """The name in records: the scenario, and plainly whether MLPerf's rules hold."""
        name = self.recipe.scenario.lower()
        return name if self.recipe.profile == "official" else f"{name}_non_official"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for config.json."""
        parts = {part: plain(getattr(self, part)) for part in ("recipe", "impl", "run")}
        names = {name for part in parts.values() for name in part} | set(parts["run"]["asked"])
        return {
            "preset": self.preset,
            "benchmark": BENCHMARK,
            **parts,
            "origins": {n: "flag" if n in self.flags else "default" for n in sorted(names)},
            "notes": [],
        }
