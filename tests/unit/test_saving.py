# SPDX-License-Identifier: Apache-2.0
"""Checkpoints beside training: of the step they are named after, one at a time, whole or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.distributed.world import World
from bertbench.common.training import loop
from bertbench.common.training.checkpoint import Checkpoints, snapshot
from bertbench.common.training.loop import train
from bertbench.common.training.saving import Saving
from tests.unit.test_training import PLAN, Seen, ToyTask

REPO = Path(__file__).parents[2]
STEPS = replace(PLAN, eval_every_samples=0, checkpoint_every_samples=24)
LIMIT_S = 60
"""Of a wait that a working program does not reach."""


class Held(Checkpoints):
    """Writes a checkpoint only once it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=9)
        self.go, self.threads = threading.Event(), set()

    def save(self, step: int, *values: Any) -> Path:
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(LIMIT_S)
        return super().save(step, *values)


def run(task: Any, plan: Any, seen: Any = None, **options: Any) -> Any:
    observers = [seen or Seen()]
    return train(
        task, backend=CpuRef(), world=World(), plan=plan, observers=observers, **options
    )  # fmt: skip


def test_training_goes_on_and_the_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    """The first one is held back until two more steps are done, which it must not contain."""
    held, plain = Held(tmp_path / "held"), Checkpoints(tmp_path / "plain", keep=9)
    task = ToyTask()
    task.on_batch = lambda step: held.go.set() if step == 6 else None
    run(task, STEPS, checkpoints=held)
    assert held.threads == {"checkpoint_0"}
    run(ToyTask(), replace(STEPS, max_steps=3), checkpoints=plain)
    (found, state), (wanted, expected) = (
        kept.load(kept.folder / "step_00000003") for kept in (held, plain)
    )
    assert state == expected
    for group, named in wanted.items():
        assert all(torch.equal(tensor, found[group][name]) for name, tensor in named.items())
    assert [p.name[-2:] for p in held.available()] == ["03", "06", "09", "12"]


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    class Telling(Seen):
        def on_checkpoint(self, *, path: str, step: int, samples: int, seconds: float) -> None:
            assert Path(path).is_dir() and seconds > 0
            told.append(("saved", step))

    task = ToyTask()
    task.on_batch = lambda step: told.append(("batch", step))
    plan = replace(STEPS, max_steps=4, checkpoint_every_samples=8, log_freq=100)
    out = run(task, plan, Telling(), checkpoints=Checkpoints(tmp_path))
    assert [step for kind, step in told if kind == "saved"] == [1, 2, 3, 4]
    for step in (1, 2):  # that of step 2 begins before batch 3
        assert told.index(("saved", step)) < told.index(("batch", step + 2))
    assert out.checkpoint_s > 0 and out.checkpoint_write_s > 0


def test_a_report_shows_one_that_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the next checkpoint, which may be hours away."""
    made: list[Saving] = []
    monkeypatch.setattr(loop, "Saving", lambda *given: made.append(Saving(*given)) or made[0])
    task, seen, held = ToyTask(), Seen(), Held(tmp_path)
    at: list[int] = []

    def let_go(step: int) -> None:
        assert at == ([7] if step > 7 else [])  # those before step 7 did not wait
        if step == 7:
            held.go.set()
            assert made[0]._written is not None
            made[0]._written[2].result(LIMIT_S)

    task.on_batch = let_go
    seen.on_checkpoint = lambda **_: at.append(len(seen.steps))  # type: ignore[method-assign]
    run(task, replace(STEPS, max_steps=9, checkpoint_every_samples=40), seen, checkpoints=held)
    assert at == [7]


@pytest.mark.parametrize("broken", [KeyError("a bug"), RuntimeError("another")])
def test_a_bug_in_the_thread_ends_the_run(tmp_path: Path, broken: Exception) -> None:
    kept = Checkpoints(tmp_path)

    def save(*_: Any) -> Path:
        raise broken

    kept.save = save  # type: ignore[method-assign]
    with pytest.raises(type(broken), match=str(broken.args[0])):
        run(ToyTask(), STEPS, checkpoints=kept)


def test_a_copy_keeps_what_is_shared_and_nothing_else() -> None:
    table, flat = torch.randn(4, 2), torch.arange(10.0)
    named = {"embedding": table, "decoder": table, "part": flat[2:6], "t": table.t()}
    named |= {"empty": torch.empty(0), "other": torch.empty(0)}
    found = snapshot({"model": named})["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in named.items())
    assert found["embedding"] is found["decoder"] and found["empty"] is not found["other"]
    assert found["part"].untyped_storage().nbytes() == 16
    table.zero_()
    flat.zero_()
    assert found["embedding"].abs().sum() > 0 and found["part"].tolist() == [2, 3, 4, 5]


KILLED = """
import os, signal, sys, pathlib
from bertbench.common.training import checkpoint
from tests.unit.test_saving import STEPS, Checkpoints, ToyTask, run
real, left = getattr(checkpoint, sys.argv[2]), int(sys.argv[3])
def dies(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(checkpoint, sys.argv[2], dies)
run(ToyTask(), STEPS, checkpoints=Checkpoints(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("where", "count", "latest"),
    [
        ("_save_group", 1, []),
        ("_save_group", 4, ["step_00000003"]),
        ("file_sha256", 6, ["step_00000003"]),
        ("sync", 14, ["step_00000003", "step_00000006"]),
    ],
)
def test_a_kill_beside_training_leaves_complete_ones(
    tmp_path: Path, where: str, count: int, latest: list[str]
) -> None:
    """Three groups, the state and the manifest; each folder syncs five files, itself and above."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(count)]
    process = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    kept = Checkpoints(tmp_path)
    assert [p.name for p in kept.available()] == latest
    for path in kept.available():
        assert kept.load(path)[1]["progress"]["step"] == int(path.name[-8:])
