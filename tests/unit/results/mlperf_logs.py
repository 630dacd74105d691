# SPDX-License-Identifier: Apache-2.0
"""MLPerf logs for tests: one that is made here, the published ones, and what their lines say.

``told`` reads a log without any of the product's code: by regular expressions, line by line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).parents[3].parent / "shared" / "data" / "mlperf_logs" / "bert-logs.tar.xz"
LINE = re.compile(
    r'"time_ms": (?P<time>\d+), .*"key": "(?P<key>\w+)", "value": (?P<value>.*), '
    r'"metadata": \{(?P<metadata>.*?)\}\}'
)


def line(key: str, time_ms: int, value: Any = None, **metadata: Any) -> str:
    """One event line as the official logger writes it."""
    kind = "POINT_IN_TIME"
    if key.endswith(("_start", "_stop")):
        kind = "INTERVAL_START" if key.endswith("_start") else "INTERVAL_END"
    content = {"namespace": "", "time_ms": time_ms, "event_type": kind, "key": key, "value": value}
    content["metadata"] = {"file": "run.py", "lineno": 1, **metadata}
    return ":::MLLOG " + json.dumps(content)


def made(*, success: bool = True, batch: int = 448, t: int = 1_700_000_000_000) -> list[str]:
    """A whole log: five evaluations 30 s apart, in a file with the usual noise."""
    head = {
        "submission_benchmark": "bert", "submission_org": "ACME", "submission_division": "closed",
        "submission_status": "onprem", "submission_platform": "1xACME One", "seed": 17,
        "global_batch_size": batch, "gradient_accumulation_steps": 1, "opt_epsilon": 1e-6,
        "opt_base_learning_rate": 4e-4,
    }  # fmt: skip
    lines = ["+ echo 'Beginning trial 1 of 1'", line("cache_clear", t, True)]
    lines += [f"{rank}: " + line("init_start", t + 10 + rank) for rank in range(4)]
    lines += ["0: " + line(key, t + 100, value) for key, value in head.items()]
    lines += ["0: " + line("init_stop", t + 5_000), "0: " + line("run_start", t + 5_001)]
    lines += ["0: parsed args: Namespace(target_mlm_accuracy=0.72, seed=17)"]
    lines += ["0: " + line("block_start", t + 5_002, None, first_epoch_num=1, epoch_count=1)]
    curve = [0.37, 0.51, 0.66, 0.71, 0.7203 if success else 0.715]
    for n, accuracy in enumerate(curve, 1):
        at = t + 5_001 + 30_000 * n
        lines.append("0: " + line("eval_accuracy", at, accuracy, epoch_num=n * 335 * batch))
        lines.append(f"0: {{'global_steps': {n * 335}, 'eval_mlm_accuracy': {accuracy}}}")
    end = t + 5_001 + 30_000 * 5 + 7
    lines.append("0: " + line("block_stop", end, None, first_epoch_num=1))
    lines.append("0: " + line("train_samples", end, 5 * 335 * batch))
    lines.append("0: " + line("eval_samples", end, 10_000))
    lines.append("0: " + line("run_stop", end, None, status="success" if success else "aborted"))
    return [*lines, "0: + set +x"]


def told(lines: list[str]) -> dict[str, Any]:
    """Start, stop, status, evaluations, samples and batch, straight from the lines."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for text in lines:
        if ":::MLLOG" in text and (match := LINE.search(text)):
            entry = (int(match["time"]), match["value"], match["metadata"])
            found.setdefault(match["key"], []).append(entry)
    evaluations = sorted({(t, float(v), m) for t, v, m in found.get("eval_accuracy", [])})
    starts = [t for t, _, _ in found.get("run_start", [])]
    stops = [t for t, _, _ in found.get("run_stop", [])]
    status = {s for _, _, m in found.get("run_stop", []) for s in re.findall(r'status": "(\w+)', m)}
    last = evaluations[-1][0] if evaluations else None
    after = {
        int(float(v))
        for t, v, _ in found.get("train_samples", [])
        if last is not None and t >= last
    }
    if not after and evaluations:  # the form that logs a plan, and the truth at run_stop
        after = {int(n) for _, _, m in found.get("run_stop", [])
                 for n in re.findall(r'epoch_num": (\d+)', m)}  # fmt: skip
    return {
        "seconds": (max(stops) - min(starts)) / 1e3 if starts and stops else None,
        "status": status.pop() if len(status) == 1 else "no_run_stop" if not stops else "unknown",
        "accuracy": evaluations[-1][1] if evaluations else None,
        "last": last or 0,
        "evaluations": [v for _, v, _ in evaluations],
        "samples": after.pop() if len(after) == 1 else None,
        "batch": {int(v) for _, v, _ in found.get("global_batch_size", [])},
    }
