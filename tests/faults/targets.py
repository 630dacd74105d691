# SPDX-License-Identifier: Apache-2.0
"""The commands that a campaign disturbs, and the folder each starts from.

Every path is relative to the case's folder, so that a command is the same in each copy of it.
"""

from __future__ import annotations

import atexit
import builtins
import json
import math
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.forks import Ended, command, preload, remove
from tests.faults.shim import Plan

TINY = """
    --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 64
    --vocab_size 256 --max_seq_length 64 --max_position_embeddings 64
    --max_predictions_per_seq 10 --global_batch 8 --micro_batch 4 --warmup_steps 2 --max_steps 6
    --log_freq 1 --eval_iter_start_samples 16 --eval_iter_samples 16 --num_eval_examples 16
    --target_mlm_accuracy None --backend cpu_ref --num_threads 1 --num_samples_per_checkpoint 16
""".split()
TINY_SQUAD = """
    --starts_from random --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2
    --intermediate_size 64 --vocab_size 32 --max_position_embeddings 64 --max_seq_length 32
    --doc_stride 8 --global_batch 8 --micro_batch 4 --learning_rate 5e-3 --eval_batch_size 16
    --num_train_epochs 1 --log_freq 1 --backend cpu_ref --num_threads 1
""".split()
MINI = ["run", "mini", *TINY]
SQUAD = ["run", "squad_mini", *TINY_SQUAD, "--data", ".", "--cache_dir", "cache",
         "--output_dir", "new"]  # fmt: skip
PREPARE = """data prepare --text text.txt --train_vocab 120 --max_seq_length 64
    --max_predictions_per_seq 10 --dupe_factor 1 --num_shards 2 --eval_fraction 0.3
    --processes 1 --output""".split()


@dataclass(frozen=True)
class Target:
    """One command."""

    argv: tuple[str, ...]
    trains: bool = False
    """It writes a record below new/."""
    output: str | None = None
    """The file or folder it writes; None: its standard output is the result."""
    again: bool = False
    """After a fault the same command has to give the whole output."""
    weight: float = 2
    timeout: float = 30


TARGETS = {
    "run": Target((*MINI, "--data", "data", "--output_dir", "new"), trains=True, weight=8),
    "synthetic": Target((*MINI, "--synthetic", "--output_dir", "new"), trains=True),
    "squad": Target(tuple(SQUAD), trains=True, weight=6),
    "resume": Target((*MINI, "--data", "data", "--output_dir", "new", "--resume", "stopped"),
                     trains=True, weight=4),
    "prepare": Target((*PREPARE, "made"), output="made", again=True, weight=4),
    "check": Target(tuple("data check data --max_seq_length 64 --max_predictions_per_seq 10 "
                          "--vocab_size 256".split())),
    "score": Target(("score", "squad", "--dataset", "squad/dev-v1.1.json",
                     "--predictions", "predictions.json")),
    "report": Target(("report", "results", "--out", "page", "--no_references"), output="page",
                     again=True),
    "compare": Target(("compare", "results/a", "results/b", "--metric", "sequences_per_second")),
    "validate": Target(("validate", "results")),
    "watch": Target(("watch", "stopped", "--once")),
    "weights": Target(("export-weights", "stopped", "--output", "weights"), output="weights",
                      again=True),
    "import": Target(("import-mlperf", "log.txt", "--output", "published", "--round", "5.0",
                      "--submitter", "x", "--devices", "1", "--device", "d", "--system", "s"),
                     output="published", again=True),
    "repeat": Target(("repeat", "2", "--", *MINI, "--synthetic", "--output_dir", "repeated",
                      "--skip_checkpoint"), weight=0.25, timeout=90),
    "dry_run": Target((*MINI, "--data", "data", "--output_dir", "new", "--dry_run")),
}  # fmt: skip


def make_base(folder: Path) -> None:
    """Write texts, data, records and an interrupted run into ``folder``; raises RuntimeError."""
    from tests.smoke.conftest import make_text
    from tests.smoke.test_squad import VOCAB, squad

    make_text(folder / "text.txt")
    (folder / "squad").mkdir()
    (folder / "squad" / "train-v1.1.json").write_text(json.dumps(squad(0, 12)))
    (folder / "squad" / "dev-v1.1.json").write_text(json.dumps(squad(1, 5)))
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    run(folder, [*PREPARE, "data"])
    preload(known(folder))
    pretrain = [*MINI, "--data", "data", "--skip_checkpoint", "--output_dir"]
    for name, seed in (("a", 1), ("a", 2), ("b", 3), ("b", 4)):
        run(folder, [*pretrain, f"results/{name}", "--seed", str(seed)])
        preload(known(folder))
    run(folder, [*SQUAD[:-1], "answers"])
    preload(known(folder))
    (answers,) = folder.glob("answers/*/*/*")
    shutil.copy(answers / "predictions.json", folder)
    shutil.copy(next(folder.glob("results/a/*/*/*/result_0.txt")), folder / "log.txt")
    shutil.rmtree(folder / "cache")
    run(folder, ["report", "results/a", "--out", "page", "--no_references"])
    _stopped(folder)


def _stopped(folder: Path) -> None:
    """Leave ``stopped``: a run that a signal stopped after a checkpoint, before its last step."""
    plan = Plan.shared()
    argv = [*TARGETS["run"].argv[:-1], "half"]
    for k in range(4, 12):
        plan.set("rename", "signal", signal.SIGTERM, k=k, prefix=folder / "half")
        ended = command(list(argv), cwd=folder, timeout=120, before=plan.arm)
        for step in folder.glob("half/*/*/*/checkpoints/step_0000000[2-4]"):
            if ended.code == 130:
                step.parent.parent.rename(folder / "stopped")
                shutil.rmtree(folder / "half")
                return
        remove(folder / "half")
    raise RuntimeError(f"no checkpoint after a signal: {ended.code}, {ended.text}")


def run(folder: Path, argv: list[str]) -> Ended:
    def list_modules() -> None:
        names = modules(folder)
        atexit.register(lambda: names.write_text("\n".join({*known(folder), *sys.modules})))
        if "results/a" in argv:
            use_sensor("energy_j")

    ended = command(argv, cwd=folder, timeout=120, before=list_modules)
    if ended.code != 0:
        raise RuntimeError(f"bertbench {' '.join(argv)}: {ended.code}\n{ended.text}")
    return ended


def known(folder: Path) -> list[str]:
    """Return the modules that the commands of ``make_base`` imported, for the server."""
    return modules(folder).read_text().split() if modules(folder).exists() else []


def modules(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.modules")


def pick(rng: random.Random, names: list[str] | None = None) -> str:
    found = names or list(TARGETS)
    return rng.choices(found, [TARGETS[name].weight for name in found])[0]


def use_sensor(key: str, what: str = "", k: int = 0) -> None:
    """Give this process a sensor of 100 W whose k-th and later readings are wrong."""
    from bertbench.backends.cpu_ref.backend import CpuRef
    from bertbench.common.measure.telemetry import Sampler

    begin, count = time.monotonic(), 0
    wrong = {"nan": math.nan, "infinity": math.inf, "negative": -5.0, "text": "x", "none": None,
             "a list": [1.0], "huge": 10**400}  # fmt: skip

    def read() -> Any:
        nonlocal count
        count += 1
        joules = 1e5 + 100 * (time.monotonic() - begin)
        values: Any = {"energy_j": joules} if key == "energy_j" else {"power_w": 100.0}
        if not what or count < k:
            return values
        if what == "hangs":
            time.sleep(3600)
        if what == "is slow":
            time.sleep(0.3)
        if what.endswith("Error"):
            raise getattr(builtins, what)("the sensor")
        if what == "reset":
            return {key: joules - 1e5} if key == "energy_j" else values
        if what == "nothing":
            return None
        return {} if what == "lacks the key" else values | {key: wrong.get(what, values[key])}

    CpuRef.telemetry = lambda self, period_s=0.1: Sampler(  # type: ignore[method-assign]
        read, source="made up", period_s=0.002
    )
