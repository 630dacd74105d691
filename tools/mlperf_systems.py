# SPDX-License-Identifier: Apache-2.0
"""Write the published figures of all systems in MLPerf Training's BERT, rounds 0.7 to 4.1.

python tools/mlperf_systems.py all-bert-systems.json.xz

The file lists for each system what its public result logs say: times of the runs, samples, batch,
accelerators. Only figures that follow from them are written, not the logs.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bertbench.common.errors import BadInput
from bertbench.common.files import write_atomic
from bertbench.common.results.published import problems, written_out
from bertbench.common.results.store import REFERENCE

OUT = REFERENCE / "mlperf-training-bert-systems.json"
STATED = (
    # round, system, precision as the submitter states it
    ("1.0", "dgxa100_ngc21.05_pytorch", "fp16"),
    ("1.1", "dgxa100_ngc21.09_pytorch", "fp16"),
    ("2.0", "dgxa100_ngc22.04_pytorch", "fp16"),
    ("2.1", "dgxa100_ngc22.09_pytorch", "fp16"),
    ("3.0", "dgxh100_ngc23.04_pytorch", "fp8"),
)
"""Precisions of single machines that a submitter stated; the logs have none."""
TASK = "BERT-large, MLPerf phase 2 from model.ckpt-28252, sequence 512"
SOURCE = {
    "title": "MLPerf Training, BERT, all systems of rounds 0.7 to 4.1",
    "url": "https://github.com/mlcommons",
    "commit": None,
    "date": None,
    "note": "recomputed from MLCommons' public result logs (mlcommons/training_results_v0.7 to "
    "v4.1, Apache-2.0), not official MLPerf results; the round stands for the date",
}
COMMON = {
    "benchmark": "bert_pretraining",
    "task": TASK,
    "precision": None,
    "batch_per_device": None,
    "where": "result logs of the round",
    "quality": {"metric": "mlm_accuracy", "value": None, "target": 0.72, "reached": True},
    "doubt": [],
}
FIRST = COMMON["quality"] | {"target": 0.712}  # type: ignore[operator]
"""Quality of round 0.7, which had another target."""
METRICS = {
    "time_to_target_s": {
        "unit": "s", "direction": "lower",
        "definition": "run_start to run_stop; mean without the fastest and the slowest run; a run "
        "that missed the target is the slowest",
    },
    "samples_to_target": {
        "unit": "sequences", "direction": "lower",
        "definition": "train_samples; median of the runs",
    },
    "sequences_per_second_e2e": {
        "unit": "sequences/s", "direction": "higher",
        "definition": "samples / time, evaluations included; median of the runs",
    },
}  # fmt: skip
COLUMNS = (
    "round", "submitter", "division", "system", "device", "devices", "software", "precision",
    "batch", "sequence_length", "runs", *METRICS, "quality", "doubt",
)  # fmt: skip


def rows(systems: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield the values of COLUMNS for each system; None where its logs do not tell them."""
    stated = {(number, system): precision for number, system, precision in STATED}
    seen: dict[tuple[float, ...], str] = {}
    for one in systems:
        number = one["round"].removeprefix("v")
        name = f"{one['round']}, {one['system']}"
        earlier = seen.setdefault(tuple(one["run_time_s"]), name)
        rate, samples = one["sequences_per_second_e2e_median"], one["samples_median"]
        # Open submissions may change the recipe; the closed division's rules fix the length.
        length = one["sequence_length"] if one["division"] == "open" else 512
        yield [
            number, one["submitter"], one["division"], one["system"],
            None if one["accelerator"] == "N/A" else one["accelerator"],
            (one["nodes"] or 0) * (one["accelerators_per_node"] or 0) or None,
            re.sub(r"\s+", " ", one["framework"] or "").strip(" ,")[:60] or None,
            stated.get((number, one["system"])), one["global_batch"], length,
            len(one["run_time_s"]), round(time_to_target(one), 1),
            None if samples is None else round(samples), None if rate is None else round(rate, 1),
            FIRST if number == "0.7" else None, doubts(one, earlier, name) or None,
        ]  # fmt: skip


def time_to_target(one: Mapping[str, Any]) -> float:
    """Return MLPerf's mean in seconds: without the fastest and the slowest run.

    A run that missed its target counts as the slowest; a single run is its own mean.
    """
    times = sorted(one["run_time_s"])
    if len(times) < 3:
        return fmean(times)
    return fmean(times[1:] if len(times) < one["logs"] else times[1:-1])


def doubts(one: Mapping[str, Any], earlier: str, name: str) -> list[str]:
    """Return what makes a system's figures doubtful; ``earlier`` had the same times first."""
    found = []
    if one["division"] == "open":
        found.append("open division: the recipe may differ")
    elif one["system"].endswith("-open"):
        found.append("closed division by its logs, open by its name: the recipe may differ")
    if one["success"] < one["logs"]:
        found.append(f"{one['logs'] - one['success']} of {one['logs']} runs missed the target")
    if one["logs"] < 10:
        found.append(f"{one['logs']} run, where MLPerf requires 10")
    if earlier != name:
        found.append(f"the same times as {earlier}")
    return found


def document(systems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the file's content."""
    table = {"common": COMMON, "metrics": METRICS, "columns": COLUMNS, "rows": list(rows(systems))}
    return {"schema_version": 1, "kind": "published", "source": SOURCE, "table": table}


def main(argv: Sequence[str]) -> int:
    """Write OUT or --output; raise BadInput for figures that the schema does not allow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", type=Path, help="JSON list of systems, compressed with xz")
    parser.add_argument("--output", "--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    made = document(json.loads(lzma.decompress(given.systems.read_bytes())))
    if found := problems(written_out(json.loads(json.dumps(made)))):
        raise BadInput(f"not written to {given.output}: {'; '.join(found[:5])}")
    lines = made["table"].pop("rows")
    head = json.dumps(made, indent=1)
    body = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    end = head.rindex("\n }\n}")
    write_atomic(given.output, f'{head[:end]},\n  "rows": [\n{body}\n  ]{head[end:]}\n')
    print(f"wrote {len(lines)} systems to {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
