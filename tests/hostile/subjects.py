# SPDX-License-Identifier: Apache-2.0
"""The files that the suite reads, the commands that read each, and what must not be said then."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.targets import MINI, PREPARE, SQUAD, TARGETS, run

CHECK = list(TARGETS["check"].argv)
TRAIN = [*MINI, "--data", "data", "--output_dir", "new", "--skip_checkpoint"]
SYNTHETIC = [*MINI, "--synthetic", "--output_dir", "new", "--skip_checkpoint"]
RESUME = list(TARGETS["resume"].argv)
WEIGHTS = [*TRAIN, "--init_checkpoint", "weights", "--bert_config_path", "weights/config.json"]
READERS = [
    ["validate", "results"], ["report", "results", "--out", "page", "--no_references"],
    ["compare", "results/a", "results/b"], ["watch", "results/a", "--once"],
    ["validate", "results/a", "--json"], ["compare", "results/b", "results/a", "--json"],
    ["runs", "results", "--csv"], ["history", "results"],
    ["rcp", "results"], ["export-mlperf", "results/a", "--out", "submission", "--org", "me"],
]  # fmt: skip
LEDGER = ["repeat", "1", "--", *MINI, "--synthetic", "--output_dir", "repeated",
          "--skip_checkpoint"]  # fmt: skip
PEAKS = """[[peak]]
device = '.*'
flops_per_second = {fp32 = 4e15, bf16 = 4e15}
definition = "dense"
source = "made up"
date = "2026"
"""
EVAL_SCRIPT = """import os
if os.path.isfile("eval.json"):
    print(open("eval.json", errors="replace").read(1 << 22))
"""


@dataclass(frozen=True)
class Subject:
    """A kind of file."""

    files: str
    """Pattern of the file to change, in the case's folder."""
    commands: list[list[str]]
    form: str = "text"
    """bytes, json, lines, tensors or text: which changes apply."""
    sealed: bool = False
    """A checksum covers it, so any change must be found."""
    reseal: Callable[[Path, Path], None] | None = None
    """Make the checksums right again, of the file in the case's folder."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables, of paths in the case's folder."""


def reseal_record(case: Path, file: Path) -> None:
    """Write the manifest's checksums anew, as an author of a false record would."""
    from bertbench.common.files import file_sha256
    from bertbench.common.results.seals import sealed

    manifest = file.parent / "manifest.json"
    text = manifest.read_text()
    if file != manifest:
        content = json.loads(text)
        size = file.stat().st_size
        content["files"][file.name] = {"bytes": size, "sha256": file_sha256(file)}
        text = json.dumps(content, indent=1) + "\n"
    manifest.write_text(sealed(text))


def reseal_checkpoint(case: Path, file: Path) -> None:
    from bertbench.common.files import file_sha256
    from bertbench.common.training.checkpoint import _manifest

    manifest = file.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    if file != manifest:
        size = file.stat().st_size
        content["files"][file.name] = {"bytes": size, "sha256": file_sha256(file)}
    manifest.write_bytes(_manifest(content["step"], content["files"]))


RECORD = "results/a/*/*/*/"
STEP = "stopped/checkpoints/step_00000003/"
SUBJECTS = {
    "manifest": Subject(RECORD + "manifest.json", READERS, "json", True, reseal_record),
    "config": Subject(RECORD + "config.json", READERS, "json", True, reseal_record),
    "system": Subject(RECORD + "system.json", READERS, "json", True, reseal_record),
    "steps": Subject(RECORD + "steps.jsonl", READERS, "lines", True, reseal_record),
    "telemetry": Subject(RECORD + "telemetry.jsonl", READERS, "lines", True, reseal_record),
    "log": Subject(RECORD + "result_0.txt", READERS, "lines", True, reseal_record),
    "mllog": Subject("log.txt", [list(TARGETS["import"].argv), ["rcp", "log.txt"]], "lines"),
    "published": Subject("reference/*.json", [
        ["report", "results", "reference", "--out", "page"],
        ["compare", "reference", "results/a", "--force"]], "json"),
    "predictions": Subject("predictions.json", [list(TARGETS["score"].argv)], "json"),
    "squad_dev": Subject("squad/dev-v1.1.json", [list(TARGETS["score"].argv), SQUAD], "json"),
    "squad_train": Subject("squad/train-v1.1.json", [SQUAD], "json"),
    "vocabulary": Subject("vocab.txt", [SQUAD, [*PREPARE[:4], "--vocab", "vocab.txt",
                                                  *PREPARE[6:], "made"]], "text"),
    "features": Subject("cache/*", [SQUAD], "tensors"),
    "shard": Subject("data/*/*.hdf5", [CHECK, TRAIN, CHECK], "hdf5"),
    "data_manifest": Subject("data/manifest.json", [CHECK, TRAIN], "json"),
    "plain": Subject("text.txt", [[*PREPARE, "made"]], "text"),
    "wiki": Subject("wiki.txt", [["data", "prepare", "--text", "wiki.txt", *PREPARE[4:], "made"]]),
    "gz": Subject("text.txt.gz", [["data", "prepare", "--text", "text.txt.gz", *PREPARE[4:],
                                   "made"]], "packed"),
    "bz2": Subject("text.txt.bz2", [["data", "prepare", "--text", "text.txt.bz2", *PREPARE[4:],
                                     "made"]], "packed"),
    "state": Subject(STEP + "state.json", [RESUME], "json", True, reseal_checkpoint),
    "checkpoint": Subject(STEP + "*.safetensors", [RESUME, list(TARGETS["weights"].argv)],
                          "tensors", True, reseal_checkpoint),
    "checkpoint_manifest": Subject(STEP + "manifest.json", [RESUME], "json", True,
                                   reseal_checkpoint),
    "resume_config": Subject("stopped/config.json", [RESUME, list(TARGETS["weights"].argv)],
                             "json"),
    "weights": Subject("weights/*.safetensors", [WEIGHTS], "tensors"),
    "pt": Subject("weights.pt", [[*TRAIN, "--init_checkpoint", "weights.pt"]], "bytes"),
    "model_config": Subject("weights/config.json", [WEIGHTS], "json"),
    "peaks": Subject("peaks.toml", [[*SYNTHETIC, "--peaks", "peaks.toml"]], "text"),
    "calibration": Subject("new/*/calibration.json", [SYNTHETIC], "json"),
    "ledger": Subject("repeated/repeats/*.json", [LEDGER], "json"),
    "record_folder": Subject(RECORD + "manifest.json", READERS, "folder", True),
    "data_folder": Subject("data/*/*.hdf5", [CHECK, TRAIN], "folder"),
    "library": Subject("kernels/native/*.so", [SYNTHETIC], "bytes",
                       environment=(("BERTBENCH_CACHE", "kernels"),)),
    "eval_script": Subject("eval.json", [[*SQUAD, "--eval_script", "eval.py"]], "json"),
    "system_info": Subject("info.json", [["export-mlperf", "results/a", "--out", "submission",
                           "--org", "me", "--system_info", "info.json"]], "json"),
}  # fmt: skip


def make_more(base: Path) -> None:
    """Add to ``targets.make_base`` what only this campaign reads."""
    import torch

    text = (base / "text.txt").read_text()
    (base / "text.txt.gz").write_bytes(gzip.compress(text.encode()))
    (base / "text.txt.bz2").write_bytes(bz2.compress(text.encode()))
    documents = [document for document in text.split("\n\n") if document.strip()]
    (base / "wiki.txt").write_text("".join(
        f'<doc id="{i}" url="u" title="t{i}">\nt{i}\n\n{d.strip()}\n</doc>\n'
        for i, d in enumerate(documents)))  # fmt: skip
    (base / "peaks.toml").write_text(PEAKS)
    (base / "info.json").write_text(json.dumps({"number_of_nodes": 1, "framework": "x"}))
    (base / "eval.json").write_text('{"exact_match": 80.0, "f1": 82.5}')
    (base / "eval.py").write_text(EVAL_SCRIPT)
    (base / "kernels").mkdir()
    os.environ["BERTBENCH_CACHE"] = str(base / "kernels")
    run(base, [*SYNTHETIC[:-2], "built", "--skip_checkpoint"])
    del os.environ["BERTBENCH_CACHE"]
    run(base, [*SQUAD])
    run(base, list(TARGETS["weights"].argv))
    run(base, list(TARGETS["import"].argv))
    (base / "published").rename(base / "reference")
    system = next(base.glob("results/a/*")).name
    (base / "new").rename(base / "answered")
    (base / "new" / system).mkdir(parents=True)
    _calibration(base, system)
    run(base, LEDGER)
    from safetensors.torch import load_file

    torch.save(load_file(next((base / "weights").glob("*.safetensors"))), base / "weights.pt")
    for record in base.glob(RECORD):
        record.chmod(0o755)
        for file in record.iterdir():
            file.chmod(0o644)


def _calibration(base: Path, system: str) -> None:
    """Write the calibration that ``bertbench calibrate`` would, without its minute of work."""
    device = json.loads(next(base.glob(RECORD + "system.json")).read_text())["devices"][0]
    best = {"flops_per_second": 1e11, "model": "base", "layer": "qkv", "product": "forward"}
    content = {
        "schema_version": 1, "kind": "calibration", "created_utc": "2026-01-01T00:00:00Z",
        "device": device, "threads": 1, "torch": "2.13", "precisions": {
            p: {"best": best, "products": [best]} for p in ("fp32", "bf16")},
    }  # fmt: skip
    (base / "new" / system / "calibration.json").write_text(json.dumps(content, indent=1))
