# SPDX-License-Identifier: Apache-2.0
"""``bertbench import-mlperf``: read an MLPerf BERT training log as a record of kind ``mlperf``.

A value comes from the log's events, from the folders of a published results repository
(``v1.0/NVIDIA/results/SYSTEM/bert/result_0.txt``) or from the command line; otherwise it is null,
and ``missing`` gives the reason. A contradiction is a ``doubt`` if one reading is safe, else null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bertbench.common.exchange.imported_run import ImportedRun, read_run
from bertbench.common.files import file_sha256, read_json, shown
from bertbench.common.mlperf.events import Events, read_file

_ROUND = re.compile(r"(?:training_results_)?v(\d+\.\d+)$")
_MILLISECONDS = 1e3


@dataclass(frozen=True)
class Origin:
    """Facts about a log that its lines do not contain."""

    round: str | None = None
    submitter: str | None = None
    system: str | None = None
    devices: int | None = None
    device: str | None = None
    repository: str | None = None
    """The published results' repository, if the file is in a copy of it."""

    @classmethod
    def of(cls, path: Path) -> Origin:
        """Read the folders of a results repository; return an empty Origin elsewhere."""
        parts = path.absolute().parts
        if len(parts) < 6 or parts[-4] != "results":
            return cls()
        division = 1 if parts[-6] in ("closed", "open") and len(parts) > 6 else 0
        found = _ROUND.match(parts[-6 - division])
        if found is None:
            return cls()
        folder = path.absolute().parents[3]
        devices, device = _description(folder / "systems" / f"{parts[-3]}.json")
        return cls(
            round=found[1],
            submitter=shown(parts[-5]),
            system=shown(parts[-3]),
            devices=devices,
            device=device,
            repository=f"https://github.com/mlcommons/training_results_v{found[1]}",
        )


def _description(path: Path) -> tuple[int | None, str | None]:
    """Return accelerators and their name from a submission's system description."""
    try:
        content = read_json(path)
        nodes, each = int(content["number_of_nodes"]), int(content["accelerators_per_node"])
        name = content.get("accelerator_model_name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None
    named = isinstance(name, str) and name.strip()
    return (nodes * each if nodes > 0 and each > 0 else None), shown(name) if named else None


def import_log(path: Path, origin: Origin | None = None) -> dict[str, Any]:
    """Return the log as a document of schema/published-1.json.

    Raises BadInput unless the file is the MLPerf log of one BERT training run.
    """
    origin = origin or Origin.of(path)
    log = read_file(path)
    run = read_run(log, origin.round, shown(path.name))
    system, submitter = _names(run, origin, log)
    row: dict[str, Any] = {
        "system": system,
        "device": origin.device,
        "devices": origin.devices,
        "benchmark": run.benchmark,
        "task": "MLPerf Training BERT",
        "precision": None,
        "batch": run.batch,
        "batch_per_device": None,
        "sequence_length": run.sequence_length,
        "submitter": submitter,
        "round": origin.round,
        "division": run.division,
        "seed": run.seed,
        "samples": run.samples,
        "status": run.status,
        "metrics": run.metrics,
        "quality": run.quality,
        "doubt": run.doubt,
        "missing": run.missing,
        "evaluations": run.evaluations,
        "log": {
            "sha256": file_sha256(path),
            "lines": log.lines,
            "events": len(log.events),
            "damaged": len(log.damaged),
            "facts": run.facts,
        },
    }
    reasons = {
        "device": "logs do not name it; systems/SYSTEM.json of a submission does",
        "devices": "logs do not count them; systems/SYSTEM.json of a submission does",
        "precision": "logs do not state it",
        "batch_per_device": "not derived: logs state packing and accumulation in several ways",
        "round": "logs do not state it: keep the folders of the published results, or use --round",
    }
    run.missing.update({name: why for name, why in reasons.items() if row[name] is None})
    run.missing = row["missing"] = dict(sorted(run.missing.items()))
    return {
        "schema_version": 1,
        "kind": "mlperf",
        "source": {
            "title": f"MLPerf log {shown(path.name)} of {system}",
            "url": origin.repository,
            "commit": None,
            "date": _day(run.day_ms),
        },
        "rows": [row],
    }


def _day(time_ms: float | None) -> str | None:
    """Return the date of a time in milliseconds since 1970."""
    if time_ms is None:
        return None
    return datetime.fromtimestamp(time_ms / _MILLISECONDS, timezone.utc).date().isoformat()


def _names(run: ImportedRun, origin: Origin, log: Events) -> tuple[str, str | None]:
    """Return system and submitter: from the place of publication, else from the log."""
    platform, org = run.facts.get("submission_platform"), run.facts.get("submission_org")
    system = origin.system
    if system is None and isinstance(platform, str) and platform.strip():
        if "PLACEHOLDER" in platform:
            run.missing["system"] = f"submission_platform is {shown(platform)}, a placeholder"
        else:
            system = shown(platform)
    elif system is None:
        run.missing["system"] = "submission_platform is not in the log" + log.damage(
            "submission_platform"
        )
    submitter = origin.submitter
    if submitter is None and isinstance(org, str) and org.strip():
        submitter = shown(org)
    elif submitter is None:
        run.missing["submitter"] = "submission_org is not in the log" + log.damage("submission_org")
    elif isinstance(org, str) and not _alike(submitter, org):
        run.doubt.append(f"published under {submitter}, but submission_org is {shown(org)}")
    return system or "unknown", submitter


def _alike(one: str, other: str) -> bool:
    a, b = ("".join(c for c in text.casefold() if c.isalnum()) for text in (one, other))
    return a in b or b in a


def file_name(document: dict[str, Any], path: Path) -> str:
    """Return a safe file name that depends only on the log."""
    row = document["rows"][0]
    parts = [row["round"] and f"v{row['round']}", row["submitter"], row["system"], path.stem]
    slugs = [re.sub(r"[^a-z0-9.]+", "-", str(part).lower()).strip("-.") for part in parts if part]
    name = "_".join(slug[:60] for slug in ["mlperf", *slugs] if slug)
    return f"{name}_{row['log']['sha256'][:8]}.json"
