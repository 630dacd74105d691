# SPDX-License-Identifier: Apache-2.0
"""Records with chosen figures, as complete as those of runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertbench.benchmarks.glue.scores import QUALITY as GLUE
from bertbench.common.measure.metric import SHARED, metric
from bertbench.common.results.seals import sealed

_NUMBERS = itertools.count(1)


def described(name: str, value: float, **changed: Any) -> dict[str, Any]:
    """A metric as a record holds it; one that is not shared is a quality."""
    if name in SHARED:
        return metric(name, value).as_dict() | changed
    lower = name.startswith("latency")
    return {
        "name": name, "value": value, "unit": "%" if name in GLUE else "s" if lower else "1",
        "direction": "lower" if lower else "higher",
        "n": 1, "ci_low": None, "ci_high": None, "clock": "none", "scope": "global",
        "definition": "a quality",
    } | changed  # fmt: skip


def device(index: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "backend": "accel", "name": "Card 1", "index": index, "memory_bytes": 1 << 30,
        "driver": None, "runtime": None, "simulated": False, "extras": {},
    } | changed  # fmt: skip


def make_run(
    root: Path,
    metrics: Mapping[str, float] | None = None,
    *,
    seed: int = 42,
    status: str = "ok",
    precision: str = "bf16",
    world_size: int = 1,
    devices: list[dict[str, Any]] | None = None,
    quality: dict[str, Any] | None = None,
    lines: str = "",
    finished: bool = True,
    config: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """Writes one run folder below ``root``; ``changed`` are manifest values."""
    number = next(_NUMBERS)
    run_id = (
        f"20260102T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}Z_abcdefa_{number:06x}"
    )
    devices = [device(i) for i in range(world_size)] if devices is None else devices
    manifest: dict[str, Any] = {
        "schema_version": 1, "run_id": run_id, "system": "1x-card", "benchmark": "bert_pretraining",
        "preset": "toy", "status": status, "reason": f"it is {status}",
        "created_utc": "2026-01-02T00:00:00Z", "finished_utc": "2026-01-02T00:01:00Z",
        "step": 10, "samples": 80, "seed": seed, "world_size": world_size,
        "simulated": any(d["simulated"] for d in devices), "global_batch": 8,
        "recipe_hash": "0123456789abcdef", "recipe_kind": "Toy",
        "inputs": {"data": "d1", "checkpoint": None}, "code_hash": "fedcba9876543210",
        "commit": None, "dirty": None, "command": ["run", "toy"], "resumed_from": None,
        "mlperf": None, "quality": quality,
        "metrics": [described(n, v) for n, v in (metrics or {}).items()], "notes": [],
        "extras": {"precision": precision, "backend": devices[0]["backend"]}, "files": None,
    } | changed  # fmt: skip
    folder = root / manifest["system"] / manifest["benchmark"] / str(manifest["run_id"])
    folder.mkdir(parents=True)
    settings = {
        "preset": manifest["preset"], "benchmark": manifest["benchmark"], "recipe": {}, "impl": {},
        "run": {"seed": seed}, "origins": {"seed": "default"}, "notes": [],
    } | (config or {})  # fmt: skip
    machine = {
        "processor": {
            "model": "P", "sockets": 1, "cores": 2, "threads": 2, "usable_threads": 2,
            "caches": None, "frequency_mhz": None, "virtual_machine": None,
        },
        "memory_bytes": 1 << 30, "load_average_1m": None, "os": {},
        "software": {"python": "3", "packages": {}}, "environment": {},
        "code": {"commit": None, "dirty": None}, "devices": devices,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "system.json").write_text(json.dumps(machine))
    apart = "".join(" \t"[number >> bit & 1] for bit in range(16))  # no two runs are alike
    (folder / "steps.jsonl").write_text(lines + apart if lines else "")
    (folder / "console.log").write_text(f"run {number}\n")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    if finished and manifest["files"] is None:
        seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Give a finished run the checksums of its files as they are now."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"] = {
        part.name: {
            "bytes": part.stat().st_size,
            "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
        }
        for part in sorted(folder.iterdir())
        if part.name != "manifest.json"
    }
    manifest["checksum"] = "0" * 64
    file.write_text(sealed(json.dumps(manifest, indent=1)))
