# SPDX-License-Identifier: Apache-2.0
"""Constructed records with MLPerf logs: whole, valid, and small."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from bertbench.backends.base import DeviceInfo
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.measure.metric import metric
from bertbench.common.mlperf.log import MlperfLog
from bertbench.common.results.record import RunRecord
from bertbench.common.training.events import EvalEvent, RunSummary, StepEvent
from tests.unit.test_record import CONFIG, INPUTS, Toy

_APART = itertools.count()
"""No two runs are alike."""
HOST = DeviceInfo(backend="cpu_ref", name="test", index=0, memory_bytes=1 << 30)
CHIP = DeviceInfo(
    backend="acme", name="Chip 9", index=0, memory_bytes=64 << 30, driver="1.2", runtime="acme 3"
)
CLOSED = {
    "gradient_accumulation_steps": 1, "opt_base_learning_rate": 4e-4, "opt_epsilon": 1e-6,
    "opt_lamb_epsilon": 1e-6, "opt_lamb_beta_1": 0.9, "opt_lamb_beta_2": 0.999,
    "opt_lamb_weight_decay_rate": 0.01, "opt_learning_rate_training_steps": 7100,
    "opt_learning_rate_warmup_steps": 0, "num_warmup_steps": 0, "start_warmup_step": 0,
}  # fmt: skip


def make(
    root: Path,
    *,
    seed: int,
    steps: int = 10,
    batch: int = 8,
    value: float = 0.75,
    division: str = "open",
    org: str = "bertbench",
    flags: tuple[str, ...] = (),
    readings: tuple[dict[str, float], ...] = (),
    status: str | None = None,
    **changed: Any,
) -> Path:
    """A run of one window and one evaluation, whose target is 0.72; ``flags`` were chosen."""
    recipe = Toy(global_batch=batch)
    config = CONFIG | {
        "recipe": {"global_batch": batch, "rates": list(recipe.rates)},
        "run": {"seed": seed, "submission_org": org, "submission_status": "onprem"},
        "origins": dict.fromkeys(
            ("global_batch", "rates", "kernels", "seed", "submission_org", "submission_status"),
            "default",
        )
        | dict.fromkeys(flags, "flag"),
    }
    record = RunRecord.create(
        root,
        **{
            "system": "test-1x", "benchmark": "bert_pretraining", "config": config,
            "devices": [HOST], "precision": "bf16", "seed": seed, "command": ["run", "mini"],
            "mlperf": {"division": division, "ruleset": "5.0.0"},
        }
        | changed,
    )  # fmt: skip
    record.identify(
        recipe_hash=recipe_hash(recipe, **INPUTS), recipe_kind="Toy", inputs=INPUTS,
        global_batch=batch,
    )  # fmt: skip
    values = {"global_batch_size": batch, **(CLOSED if division == "closed" else {})}
    log = MlperfLog(
        record.path / "result_0.txt", division=division, org=org, platform="p", status="onprem",
        seed=seed, values=values,
    )  # fmt: skip
    samples, seconds, reached = steps * batch, 100.0, value >= 0.72
    step = StepEvent(
        step=steps, samples=samples, loss=2.0, metrics={"mlm_accuracy": 0.1}, learning_rate=0.1,
        grad_norm=None, loss_scale=None, skipped_steps=0, window_steps=steps, window_s=seconds,
        sequences_per_second=samples / seconds, real_tokens_per_second=samples / 2,
        padded_tokens_per_second=samples * 1.0, data_wait_s=next(_APART) * 1e-9, time_s=seconds,
    )  # fmt: skip
    evaluation = EvalEvent(
        step=steps, samples=samples, metrics={"mlm_accuracy": value, "num_samples": 100.0},
        target_metric="mlm_accuracy", target_value=0.72, reached=reached, eval_s=1.0,
        time_s=seconds + 1,
    )  # fmt: skip
    ended = status or ("ok" if reached else "below_quality")
    record.telemetry = Readings(readings)
    for o in (log, record):
        o.init_start()
        o.init_stop()
        o.run_start(step=0, samples=0)
        o.on_step(step)
        o.eval_start(step=steps, samples=samples)
        o.on_eval(evaluation)
        o.run_stop(step=steps, samples=samples, status="success" if reached else "aborted")
    metrics = (
        metric("sequences_per_second", samples / seconds),
        metric("run_time_s", seconds + 1),
    )
    summary = RunSummary(
        status=ended, reason="r", step=steps, samples=samples, metrics=metrics,
        extras={"precision": "fp32", "backend": "cpu_ref"} if not changed.get("devices") else {},
    )  # fmt: skip
    log.close(summary)
    record.close(summary)
    return record.path


class Readings:
    def __init__(self, values: tuple[dict[str, float], ...]) -> None:
        self._values = list(values)

    def samples(self) -> list[dict[str, float]]:
        return self._values
