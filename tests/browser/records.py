# SPDX-License-Identifier: Apache-2.0
"""Results of every sort, as the report meets them: seeds, scaling, failures, hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.unit.results.constructed import device, make_run, seal

HOSTILE = "</style></script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
TRICKY = '"><svg onload=window.hacked=1> {{ 7*7 }} | [x](javascript:alert(1)) `a` *b* \n# c'
TARGET = 0.5


def steps(rate: float, values: tuple[float, ...] = (0.2, 0.4, 0.6), every: int = 2) -> str:
    """A run that reports ``every`` steps before each of its evaluations."""
    lines: list[dict[str, Any]] = [{"kind": "run_start", "step": 0, "samples": 0}]
    step = 0
    for value in values:
        for _ in range(every):
            step += 1
            lines.append({
                "kind": "step", "step": step, "samples": 8 * step, "loss": 3.0 - value,
                "sequences_per_second": rate + step, "time_s": 8 * step / rate, "metrics": {},
            })  # fmt: skip
        lines.append({
            "kind": "eval", "step": step, "samples": 8 * step, "metrics": {"mlm_accuracy": value},
            "target_metric": "mlm_accuracy", "target_value": TARGET, "reached": value >= TARGET,
            "eval_s": 1.0, "time_s": 8 * step / rate + 1,
        })  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


def quality(value: float) -> dict[str, Any]:
    return {
        "metric": "mlm_accuracy", "value": value, "target": TARGET, "reached": value >= TARGET,
        "samples": 48,
    }  # fmt: skip


def figures(rate: float) -> dict[str, float]:
    """Metrics of a run of ``rate`` sequences per second."""
    return {
        "sequences_per_second": rate, "time_to_target_s": 100.0, "run_time_s": 100.0,
        "e2e_time_s": 120.0, "eval_s": 20.0, "data_wait_s": 5.0, "checkpoint_s": 0.0,
        "peak_memory_bytes": 2.0**30, "power_w": 100.0,
    }  # fmt: skip


def telemetry(folder: Path, windows: tuple[tuple[float, int], ...] = ((50.0, 40), (60.0, 40))):
    """Readings every 0.1 s from each (start, number)."""
    lines = [
        {"t": start + 0.1 * i, "power_w": 90.0 + i % 7, "temperature_c": 50.0 + i / 40,
         "sm_clock_mhz": 1400.0, "memory_used_bytes": 2.0**30}
        for start, count in windows
        for i in range(count)
    ]  # fmt: skip
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    seal(folder)


def write_results(root: Path) -> Path:
    """All sorts at once; returns the folder of results."""
    for seed, rate in enumerate((10.0, 11.0, 12.0), 1):
        for precision, factor in (("bf16", 2.0), ("fp32", 1.0)):
            folder = make_run(
                root, figures(factor * rate), seed=seed, precision=precision,
                quality=quality(0.6), lines=steps(factor * rate),
            )  # fmt: skip
        telemetry(folder)
    make_run(
        root, figures(42.0), world_size=2, quality=quality(0.6), lines=steps(42.0),
        system="2x-card",
    )  # fmt: skip
    make_run(root, figures(20.0), status="below_quality", quality=quality(0.4), seed=4,
             lines=steps(20.0, (0.2, 0.4)))  # fmt: skip
    make_run(root, status="oom", reason="out of device memory: lower --micro_batch", seed=5)
    make_run(root, status="unsupported", reason="no bf16 on this device", seed=6)
    make_run(root, status="interrupted", seed=7, lines=steps(20.0, (0.2,)) + '{"kind": "st')
    make_run(root, figures(99.0), devices=[device(name="Played card", simulated=True)],
             quality=quality(0.6), lines=steps(99.0), system="simulated")  # fmt: skip
    for text in (HOSTILE, TRICKY):
        make_run(
            root, figures(5.0) | {text: 1.0}, status="failed", reason=text, preset=text,
            precision=text, notes=[text], devices=[device(name=text, backend=text)],
            quality=quality(0.1) | {"metric": text}, lines=steps(5.0, (0.1, 0.1)),
            benchmark="bert_" + text.replace("/", ""), system="strange",
            config={"origins": {text: "flag"}, "run": {text: text}},
        )  # fmt: skip
    broken = make_run(root, figures(1.0), seed=99)
    (broken / "manifest.json").write_text('{"schema_version": 1, <script>')
    theirs = {
        "schema_version": 1, "kind": "published",
        "source": {"title": HOSTILE, "url": "javascript:alert(1)", "commit": None, "date": None},
        "rows": [{
            "system": TRICKY, "device": None, "devices": 1, "benchmark": "bert_pretraining",
            "precision": None, "batch": None, "task": HOSTILE, "quality": None, "doubt": [TRICKY],
            "metrics": {"sequences_per_second": {"value": 3.0, "unit": "sequences/s",
                                                 "direction": "higher", "definition": HOSTILE}},
        }],
    }  # fmt: skip
    (root / "reference").mkdir()
    (root / "reference" / "strange.json").write_text(json.dumps(theirs))
    return root
