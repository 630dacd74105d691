# SPDX-License-Identifier: Apache-2.0
"""The lazy generations of Enflame's PyTorch, against fake packages that record every call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bertbench.backends.gcu import select
from bertbench.backends.gcu.backend import Gcu
from bertbench.backends.gcu.lazy import Dtu, LazyGcu
from bertbench.backends.timers import HostTimer
from bertbench.common.errors import Unsupported


class Recorder:
    """Functions of a fake package: each call is kept, with its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def function(self, name: str, answer: Any = None) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return answer(*args, **kwargs) if callable(answer) else answer

        return record

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """A fake module and the packages above it."""
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        if part not in sys.modules:
            module = ModuleType(part)
            module.__spec__ = ModuleSpec(part, None)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, part, module)
    for key, value in attributes.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)


def fake(monkeypatch: pytest.MonkeyPatch, package: str, functions: str) -> Recorder:
    """The parts that Enflame's published scripts use, on the host's own tensors."""
    seen = Recorder()

    @contextmanager
    def autocast() -> Any:
        seen.calls.append(("autocast", (), {}))
        with torch.autocast("cpu", dtype=torch.float16):
            yield

    class Scaler:
        def __init__(self, **kwargs: Any) -> None:
            seen.calls.append(("GradScaler", (), kwargs))
            self.step = seen.function("scaler.step")
            self.update = seen.function("scaler.update")

        def is_enabled(self) -> bool:
            return True

    constructor = "dtu_device" if package == "torch_dtu" else "gcu_device"
    install(monkeypatch, package)
    install(
        monkeypatch,
        functions,
        optimizer_step=seen.function("optimizer_step", lambda opt, *a, **k: opt.step()),
        unlazy=seen.function("unlazy"),
        collect_amp_training_params=seen.function("collect", lambda *a: ["tensors"]),
        **{constructor: seen.function(constructor, torch.device("cpu"))},
    )
    install(monkeypatch, f"{package}.amp", autocast=autocast, GradScaler=Scaler)
    install(
        monkeypatch,
        f"{package}.distributed",
        init_process_group=seen.function("init_process_group"),
        get_world_size=lambda: 8,
    )
    install(
        monkeypatch,
        f"{package}.nn.parallel",
        DistributedDataParallel=seen.function("DDP", lambda module, **k: module),
    )
    return seen


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ENFLAME_ENABLE_TF32", "TOPS_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, "pyefml", None)
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def gcu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    seen = fake(monkeypatch, "torch_gcu", "torch_gcu")
    install(
        monkeypatch,
        "torch_gcu",
        __version__="1.9",
        JitRunMode=SimpleNamespace(ASYNC="async", SAFEASYNC="safeasync"),
        device_count=lambda: 2,
        set_device=seen.function("set_device"),
        get_device_name=lambda index: f"T20 {index}",
        sync_lived_tensor=seen.function("sync_lived_tensor"),
        synchronize=seen.function("synchronize"),
    )
    return seen


@pytest.fixture
def dtu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return fake(monkeypatch, "torch_dtu", "torch_dtu.core.dtu_model")


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_select_sees_a_loaded_lazy_package(gcu: Recorder) -> None:
    assert select() is LazyGcu


def test_select_sees_dtu_where_there_is_no_torch_gcu(
    dtu: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch_dtu").mkdir()
    (tmp_path / "torch_dtu" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_dtu")
    assert select() is Dtu


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["torch_gcu/__init__.py", "torch_gcu/core/device.py"], LazyGcu),
        (["torch_gcu/__init__.py", "torch_gcu/gcu/__init__.py"], Gcu),
        (["torch_gcu/__init__.py", "torch_gcu/gcu/x.py", "torch_gcu/core/device.py"], Gcu),
        (["torch_gcu/__init__.py"], Gcu),
        (["torch_gcu.py"], Gcu),
        (["torch_gcu/__init__.py", "torch_gcu/core/device.py", "torch_dtu/__init__.py"], LazyGcu),
        ([], Gcu),
    ],
)
def test_select_reads_the_installed_files_and_imports_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], expected: type
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise SystemError('broken')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert select() is expected
    assert "torch_gcu" not in sys.modules


def test_probe_counts_devices(gcu: Recorder) -> None:
    assert LazyGcu.probe() == (LazyGcu.probe().__class__)(True, "2 devices, lazy")


def test_probe_of_dtu_asks_for_the_first_device(dtu: Recorder) -> None:
    assert Dtu.probe().reason == "1 device, lazy"
    assert dtu.calls == [("dtu_device", (0,), {})]


def test_probe_without_the_package() -> None:
    assert Dtu.probe().reason == "package torch_dtu is not installed"


def test_probe_says_that_the_versions_cannot_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch_dtu").mkdir()
    (tmp_path / "torch_dtu" / "__init__.py").write_text("raise ImportError('_DTUC.cpython-38')")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = Dtu.probe()
    assert not answer.ok
    assert "ImportError: _DTUC.cpython-38" in answer.reason
    assert "Python 3.6 to 3.8" in answer.reason
    assert f"torch {torch.__version__}" in answer.reason
    assert "\n" not in answer.reason


def test_probe_reports_a_device_that_does_not_open(
    gcu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> int:
        raise RuntimeError("driver not loaded\nat ...")

    monkeypatch.setattr(sys.modules["torch_gcu"], "device_count", broken)
    assert LazyGcu.probe().reason == "no working device: RuntimeError: driver not loaded"
    monkeypatch.setattr(sys.modules["torch_gcu"], "device_count", lambda: 0)
    assert (LazyGcu.probe().ok, LazyGcu.probe().reason) == (False, "no device")


def test_what_it_says_of_itself(gcu: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENFLAME_ENABLE_TF32", "true")
    backend = LazyGcu(1)
    assert ("gcu_device", (1,), {}) in gcu.calls
    assert ("set_device", (torch.device("xla", 1),), {}) in gcu.calls
    info = backend.describe()
    assert (info.name, info.index, info.runtime) == ("T20 1", 1, "torch_gcu 1.9")
    assert info.extras == {"ENFLAME_ENABLE_TF32": "true", "generation": "lazy"}
    capabilities = backend.capabilities
    assert capabilities.precisions == ("fp16", "tf32")
    assert "ENFLAME_ENABLE_TF32=false" in capabilities.notes["fp32"]
    assert "efsmi: not found" in capabilities.notes["power"]
    assert backend.verified == "documents"
    assert isinstance(backend.timer(), HostTimer)
    assert backend.peak_memory() is None


def test_precisions_without_the_switch(gcu: Recorder) -> None:
    backend = LazyGcu()
    assert backend.capabilities.precisions == ("fp16", "fp32")
    with pytest.raises(Unsupported, match="ENFLAME_ENABLE_TF32=true"):
        backend.resolve_precision("tf32")
    with pytest.raises(Unsupported, match="takes no dtype"):
        backend.resolve_precision("bf16")
    assert backend.resolve_precision("amp") == "fp16"


def test_autocast_is_the_packages_own(gcu: Recorder) -> None:
    with LazyGcu().precision("fp16"):
        assert nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float16
    assert "autocast" in gcu.names()
    before = len(gcu.calls)
    with LazyGcu().precision("fp32"):
        pass
    assert "autocast" not in gcu.names()[before:]


def test_fp32_step_goes_through_the_package_with_the_model(gcu: Recorder) -> None:
    backend = LazyGcu()
    model, optimizer = model_and_optimizer()
    backend.compile(model, None)
    before = [p.clone() for p in model.parameters()]
    backend.optimizer_step(optimizer, backend.grad_scaler("fp32"))
    name, args, kwargs = gcu.calls[-1]
    assert (name, args) == ("optimizer_step", (optimizer, []))
    assert kwargs == {"model": model, "mode": "safeasync"}
    assert not torch.equal(before[0], next(model.parameters()))


def test_several_processes_run_the_graph_without_waiting(gcu: Recorder) -> None:
    backend = LazyGcu()
    _, optimizer = model_and_optimizer()
    backend.init_process_group("eccl", timeout=1)
    assert gcu.calls[-1] == (
        "init_process_group", (), {"backend": "eccl", "init_method": "env://"},
    )  # fmt: skip
    backend.optimizer_step(optimizer, backend.grad_scaler("fp32"))
    assert gcu.calls[-1][2] == {"model": None, "mode": "async"}
    with pytest.raises(Unsupported, match="no collective backend 'other'"):
        backend.init_process_group("other")


def test_fp16_step_uses_the_packages_scaler_and_cuts_the_graph(gcu: Recorder) -> None:
    backend = LazyGcu()
    model, optimizer = model_and_optimizer()
    backend.compile(model, None)
    scaler = backend.grad_scaler("fp16", init_scale=1024.0)
    assert gcu.calls[-1] == ("GradScaler", (), {"init_scale": 1024.0, "use_zero_grad": True})
    before = len(gcu.calls)
    backend.optimizer_step(optimizer, scaler)
    assert gcu.calls[before:] == [
        ("scaler.step", (optimizer,), {}),
        ("scaler.update", (), {}),
        ("collect", (model, optimizer, scaler), {}),
        ("unlazy", (["tensors"],), {}),
    ]


def test_synchronise_materialises_what_lives_then_waits(gcu: Recorder) -> None:
    backend = LazyGcu()
    before = len(gcu.calls)
    backend.synchronize()
    assert gcu.names()[before:] == ["sync_lived_tensor", "synchronize"]


def test_ddp_is_the_packages_own(gcu: Recorder) -> None:
    model = nn.Linear(1, 1)
    assert LazyGcu(1).wrap_ddp(model) is model
    assert gcu.calls[-1] == ("DDP", (model,), {"device_ids": [1], "find_unused_parameters": True})
    with pytest.raises(Unsupported, match="gcu: no --reduce_dtype bf16: the lazy stack's own DDP"):
        LazyGcu(1).wrap_ddp(model, "bf16")


def test_the_hosts_random_state_is_all_that_is_kept(gcu: Recorder) -> None:
    backend = LazyGcu()
    state = backend.rng_state()
    assert set(state) == {"cpu"}
    first = torch.rand(3)
    backend.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_compiler_cannot_be_asked_for(gcu: Recorder) -> None:
    with pytest.raises(Unsupported, match="has no compiler 'inductor'"):
        LazyGcu().compile(nn.Linear(1, 1), "inductor")


def test_dtu_differs_in_names_only(dtu: Recorder) -> None:
    backend = Dtu()
    model, optimizer = model_and_optimizer()
    backend.compile(model, None)
    backend.optimizer_step(optimizer, backend.grad_scaler("fp32"))
    assert dtu.calls[-1] == (
        "optimizer_step", (optimizer, []), {"model": model, "safe_async": True},
    )  # fmt: skip
    backend.init_process_group(None)
    backend.optimizer_step(optimizer, backend.grad_scaler("fp32"))
    assert dtu.calls[-1][2] == {"model": model, "safe_async": False}
    before = len(dtu.calls)
    backend.synchronize()
    name, (tensors,), _ = dtu.calls[before]
    assert (name, [t.shape for t in tensors]) == ("unlazy", [torch.Size([1])])
    assert backend.describe().runtime == "torch_dtu"
    with backend.precision("fp16"):
        pass
    assert dtu.names()[-1] == "autocast"
