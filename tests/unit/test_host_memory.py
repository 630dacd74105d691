# SPDX-License-Identifier: Apache-2.0
"""Host memory that runs out: status ``oom`` and one line; bugs stay tracebacks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bertbench.backends.base import Backend
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.cli import main as cli
from bertbench.common.errors import host_memory_ran_out
from bertbench.common.run import Run

BAD = [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("no DefaultCPUAllocator\nat x")]


def test_torchs_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert host_memory_ran_out(caught.value)


@pytest.mark.parametrize("error", BAD)
@pytest.mark.parametrize("flags", [[], ["--json"], ["--json", "--dry_run"]])
def test_it_is_one_line(
    error: Exception, flags: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setitem(cli.VERBS, "run", SimpleNamespace(load=lambda: fail))
    assert cli.main(["run", "mini", *flags]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("bertbench run: out of memory: ") and said.err.count("\n") == 1
    assert not flags or json.loads(said.out)["error"].startswith("out of memory: ")


def test_another_error_of_torch_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: list[str]) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setitem(cli.VERBS, "run", SimpleNamespace(load=lambda: fail))
    with pytest.raises(RuntimeError, match="mat1"):
        cli.main(["run", "mini"])


@pytest.mark.parametrize("error", BAD)
def test_in_training_the_status_is_oom(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.__new__(Run)
    run.backend = CpuRef.__new__(CpuRef)
    run.built, run.progress = SimpleNamespace(), None  # type: ignore[assignment]
    monkeypatch.setattr(Run, "_out_of_memory", lambda self, built, error: "lower --micro_batch")
    assert run._failed(error).status == "oom"
    assert run._failed(RuntimeError("a bug")).status == "failed"
    assert not Backend.ran_out(SimpleNamespace(oom_errors=(KeyError,)), error)  # type: ignore
