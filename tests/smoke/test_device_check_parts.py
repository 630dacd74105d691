# SPDX-License-Identifier: Apache-2.0
"""The parts of tools/device_check.py, for devices that are not here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from bertbench.benchmarks import resolve

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

figure = importlib.import_module("check.figure")
section = importlib.import_module("check.section")
SECTIONS = importlib.import_module("check.sections").SECTIONS


@pytest.fixture
def report(tmp_path: Path) -> Any:
    return figure.SectionReport("test", tmp_path / "lines")


def found(report: Any) -> dict[str, Any]:
    report.end("passed")
    figures, _, end = figure.read_report(Path(report._file.name))
    assert end == ("passed", "")
    return {f.name: f for f in figures}


def test_full_size_arguments_are_flags_of_the_recipes() -> None:
    runs = module("runs")
    check = module("device").Check(backend="cpu_ref", tiny=False, folder=Path())
    recipe, *flags = runs.pretraining_arguments(check, "bf16", 8, 96, 14)
    settings = resolve(recipe, flags)
    assert settings.recipe.global_batch == 768 and settings.impl.micro_batch == 96
    assert settings.recipe.model.num_hidden_layers == 24 and settings.recipe.max_steps == 14


def module(name: str) -> ModuleType:
    return importlib.import_module(f"check.{name}")


def test_bf16_is_not_replaced_by_another_precision_but_with_tiny() -> None:
    can = SimpleNamespace(precisions=("fp16", "fp32"), notes={"bf16": "too old"})
    backend = SimpleNamespace(name="old", capabilities=can)
    device = module("device")
    full = device.Check(backend="old", tiny=False, folder=Path())
    with pytest.raises(figure.NotAvailable, match="old does not support bf16: too old"):
        device.choose_precision(full, backend, "bf16")
    assert device.choose_precision(full, backend, "fp16") == "fp16"
    small = device.Check(backend="old", tiny=True, folder=Path())
    assert device.choose_precision(small, backend, "bf16") == "fp32"
    with pytest.raises(figure.NotAvailable, match="tf32"):
        device.choose_precision(small, backend, "tf32")


def event(name: str, us: float, kind: DeviceType = DeviceType.CUDA, **more: Any) -> Any:
    span = SimpleNamespace(elapsed_us=lambda: us)
    return SimpleNamespace(
        name=name, device_type=kind, time_range=span, self_cpu_time_total=us, **more
    )


def test_kernels_are_counted_and_ranked(report: Any) -> None:
    events = [
        event("gemm", 300.0),
        event("gemm", 500.0),
        event("norm", 100.0),
        event("Memcpy HtoD", 50.0),
        event("aten::mm", 7.0, DeviceType.CPU),
        event("a region", 950.0, is_user_annotation=True),
    ]
    seconds = module("profile").report_events(report, "step", events)
    assert seconds == pytest.approx(950e-6)
    figures = found(report)
    assert figures["step: kernels"].value == 3
    assert figures["step: copies and fills"].value == 1
    assert figures["step: kernel time"].value == pytest.approx(0.95)
    first = figures["step: kernel 1, gemm"]
    assert first.value == pytest.approx(0.8) and first.note.startswith("2 calls, 84.2%")
    assert list(figures)[3:] == [
        "step: kernel 1, gemm", "step: kernel 2, norm", "step: kernel 3, Memcpy HtoD"
    ]  # fmt: skip


def test_names_of_kernels_are_cut_behind_the_part_that_differs() -> None:
    short = module("profile").short
    start = "void at::native::(anonymous namespace)::vectorized_elementwise_kernel<4, "
    common = start + "at::native::BinaryFunctor<c10::BFloat16, c10::BFloat16, c10::BFloat16, "
    names = [short(common + f"at::native::{end}<float>> >(int, {'x' * 300})") for end in "ab"]
    assert names[0] != names[1] and {len(name) for name in names} == {160}
    assert names[0].startswith("vectorized_elementwise_kernel<4, BinaryFunctor<c10::BFloat16")


def test_busy_share_is_kernel_time_over_the_step_of_the_same_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Any
) -> None:
    """In this process: a fork of one in which torch has computed may wait for ever for a thread."""
    anatomy = module("anatomy")
    monkeypatch.setattr(anatomy, "profile_step", lambda *_: 0.001)
    anatomy.anatomy(module("device").Check(backend="cpu_ref", tiny=True, folder=tmp_path), report)
    figures = {name.rpartition(": ")[2]: f for name, f in found(report).items()}
    share, step = figures["device busy share"], figures["step, one batch"]
    assert share.value == pytest.approx(1.0 / step.value) and share.note == step.note


def test_masked_attention_is_compared_and_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Any
) -> None:
    masked = module("masked")
    check = module("device").Check(backend="cpu_ref", tiny=True, folder=tmp_path)
    monkeypatch.setattr(masked, "PATTERNS", ("longformer:window=1,globals=0,block=32",))
    monkeypatch.setattr(masked, "REPEATS", 1)
    monkeypatch.setattr(module("timing"), "WARM_UP", 0)
    monkeypatch.setattr(module("parts"), "SPANS", 1)
    masked.masked(check, report)
    figures = found(report)
    assert all(f.value is not None for f in figures.values())
    equal = [f for name, f in figures.items() if name.endswith((": output", ": gradient"))]
    assert len(equal) >= 2 and all(0 <= f.value < 0.03 for f in equal)
    assert all(f.value == pytest.approx(1, abs=0.05) for name, f in figures.items()
               if ": dropout 0." in name)  # fmt: skip
    ratios = [name for name in figures if name.endswith("dense over masked")]
    assert len(ratios) >= 4  # two lengths, with dropout and without
    for name in ratios:
        own = figures[name.removesuffix(", dense over masked")]
        label = name.split(":")[0] + ":"
        (base,) = (
            figures[n] for n in figures if n.startswith(label) and n.endswith(", dense")
        )  # fmt: skip
        assert figures[name].value == pytest.approx(base.value / own.value)
    step, dense, sparse = (
        next(f for name, f in figures.items() if name.endswith(end))
        for end in ("dense over masked, step", ": dense step", ": masked step")
    )
    assert step.value == pytest.approx(dense.value / sparse.value)


def test_masked_attention_that_is_wrong_fails_its_section(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: Any
) -> None:
    masked, ops = module("masked"), importlib.import_module("bertbench.common.model.ops")
    check = module("device").Check(backend="cpu_ref", tiny=True, folder=tmp_path)

    class NoScale(ops.ComputeTypeOps):
        def masked_attention(self, *args: Any, dropout: float, **more: Any) -> Any:
            out = super().masked_attention(*args, dropout=dropout, **more)
            return out * (1 - dropout)

    backend = SimpleNamespace(
        device=importlib.import_module("torch").device("cpu"),
        masked_ops=lambda kernels, precision: NoScale(None, passed_over={"flex": "no compiler"}),
    )
    with pytest.raises(
        masked.Wrong, match=r"dropout 0.1 scales by 0\.[89].*dropout 0.5 scales by 0.5"
    ):
        masked.equality(check, report, backend, "fp32")
    report.end("passed")
    facts = figure.read_report(Path(report._file.name))[1]
    assert [(f.name, f.text) for f in facts] == [
        ("fp32 masked attention: passed over", "flex: no compiler")
    ]


def test_the_batch_nearest_to_the_mean_is_chosen() -> None:
    batches = [SimpleNamespace(num_tokens=n) for n in (100, 300, 190, 260)]
    assert module("anatomy").nearest_to_mean(batches).num_tokens == 190


def test_contract_counts_come_from_pytests_own_file(report: Any) -> None:
    xml = """<testsuites><testsuite>
      <testcase name="a"/><testcase name="b"/>
      <testcase name="c"><failure message="wrong"/></testcase>
      <testcase name="d"><error message="broken"/></testcase>
      <testcase name="e"><skipped message="no tf32"/></testcase>
    </testsuite></testsuites>"""
    assert module("facts").report_contract(report, xml) == ["c", "d"]
    counts = {name: f.value for name, f in found(report).items()}
    assert counts == {"passed": 2, "failed": 2, "skipped": 1}


def test_a_synchronize_that_does_not_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, timers = module("timing"), importlib.import_module("bertbench.backends.timers")
    now, queued = [0.0], [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(
        timing, "HostTimer", lambda sync: timers.HostTimer(sync, clock.perf_counter)
    )

    def wait(share: float) -> None:
        now[0] += share * queued[0]
        queued[0] *= 1 - share

    def work() -> None:
        queued[0] += 1.0

    right = SimpleNamespace(synchronize=lambda: wait(1.0))
    assert timing.step_seconds(right, work, 5) == pytest.approx(1.0)
    half = SimpleNamespace(synchronize=lambda: wait(0.5))
    with pytest.raises(timing.NotSynchronised):
        timing.step_seconds(half, work, 5)


def test_a_figure_needs_unit_definition_and_a_reason_for_having_no_value(report: Any) -> None:
    for wrong in (("a", 1.0, "", "d"), ("a", 1.0, "s", ""), ("a", None, "s", "d")):
        with pytest.raises(ValueError):
            report.figure(*wrong)
    report.figure("a", float("nan"), "s", "d")
    with pytest.raises(ValueError, match="reported before"):
        report.figure("a", 1.0, "s", "d")
    value = found(report)["a"]
    assert value.value is None and "nan" in value.note


def test_sections_with_records_say_that_they_need_a_calibration(report: Any) -> None:
    need = {s.name for s in SECTIONS if s.calibrated}
    names = {s.name for s in SECTIONS if s.name.startswith("pretrain")}
    assert need == names | {"squad", "other_kernels", "inductor"}
    check = module("device").Check(backend="cpu_ref", tiny=False, folder=Path())
    (squad,) = (s for s in SECTIONS if s.name == "squad")
    alone = "run it with --only calibrate,squad --output OTHER"
    assert section.skip(squad, check, 1.0, 2.0).reason.endswith(alone)
    report.section = "squad"
    record = SimpleNamespace(manifest={"simulated": False})
    assert module("runs")._why_missing("mfu_calibrated", record, report).endswith(alone)
