# SPDX-License-Identifier: Apache-2.0
"""Records of inference with chosen figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.results.constructed import device, make_run

SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
         "intermediate_size": 1536}  # fmt: skip
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
         "intermediate_size": 4096}  # fmt: skip


def infer(
    root: Path,
    metrics: dict[str, float],
    *,
    weights: str = "w0",
    precision: str = "fp32",
    sparsity: str | None = None,
    scenario: str = "Offline",
    profile: str = "non-official",
    shape: dict[str, Any] | None = None,
    threads: int = 2,
    min_duration_ms: float = 1000,
    **changed: Any,
) -> Path:
    """Writes one record of inference below ``root``."""
    recipe = {
        "scenario": scenario, "profile": profile, "min_duration_ms": min_duration_ms,
        "min_query_count": 1, "latency_bound_ms": None, "max_seq_length": 384,
    }  # fmt: skip
    impl = {"engine": "onnxruntime", "provider": "CPU", "provider_options": [],
            "num_threads": threads, "batch_tokens": 4096, "padded": False}  # fmt: skip
    extras = {
        "precision": precision, "profile": profile, "parameters": 22_000_000,
        "model_bytes": 88_000_123,
        "export": {"model": SMALL if shape is None else shape, "weight_sparsity": sparsity},
    }  # fmt: skip
    preset = scenario.lower() + ("" if profile == "official" else "_non_official")
    return make_run(
        root, {"result_valid": 1.0, **metrics}, devices=[device(backend="onnxruntime")],
        **{
            "benchmark": "bert_inference", "preset": preset, "global_batch": None,
            "recipe_hash": f"{abs(hash((str(recipe), weights))):016x}"[:16],
            "inputs": {"data": "questions", "checkpoint": f"{weights}-of-64-digits"},
            "extras": extras,
            "config": {"preset": preset, "benchmark": "bert_inference", "recipe": recipe,
                       "impl": impl},
        } | changed,
    )  # fmt: skip
