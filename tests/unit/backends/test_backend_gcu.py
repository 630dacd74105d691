# SPDX-License-Identifier: Apache-2.0
"""The eager GCU adapter on the stand-in for torch_gcu, each process with its own variables."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertbench.backends import fallbacks
from bertbench.backends.gcu import backend as gcu
from bertbench.backends.gcu import fallback_log
from bertbench.backends.simulated import build
from bertbench.common.errors import Unsupported

ROOT = Path(__file__).parents[3]

LOOK = """
import json, sys
import torch
import torch.nn.functional as F
from bertbench.backends import load
from bertbench.common.errors import Unsupported

def refusal(precision):
    try:
        backend.resolve_precision(precision)
    except Unsupported as error:
        return str(error)

Gcu = load("gcu")
backend = Gcu(1)
have = backend.capabilities
embedding = torch.nn.Embedding(8, 4).to(backend.device)
with backend.fallbacks() as unused:
    (torch.ones(2, 4, device=backend.device) @ embedding.weight.T).sum().cpu()
with backend.fallbacks() as used:
    for _ in range(3):
        F.gelu(embedding(torch.tensor([1, 2], device=backend.device))).sum().backward()
info = backend.describe()
sampler = backend.telemetry()
if sampler is not None:
    sampler.start()
    sampler.stop()
json.dump({
    "sensors": None if sampler is None else [sampler.source, sampler.samples()],
    "class": f"{Gcu.__module__}.{Gcu.__name__}", "probe": Gcu.probe().reason,
    "precisions": have.precisions, "collective": have.collective, "timer": have.device_timer,
    "memory": have.memory_stats, "compilers": have.compilers, "notes": dict(have.notes),
    "refused": {p: refusal(p) for p in ("fp32", "tf32", "bf16", "fp16")},
    "checks": {p: backend.verify_precision(p) for p in have.precisions},
    "kernels": {p: dict(backend.ops("auto", p).kernels) for p in have.precisions},
    "unused": unused, "used": used, "counted": torch.gcu.counters()["fallbacks"],
    "name": info.name, "runtime": info.runtime, "simulated": info.simulated,
    "index": info.index, "extras": dict(info.extras),
    "scaler": [backend.grad_scaler(p).is_enabled() for p in ("fp16", "fp32")],
}, sys.stdout)
"""


def look(**variables: str) -> dict[str, Any]:
    """What a fresh process sees of the stand-in under these variables."""
    vendor = ("ENFLAME", "BERTBENCH", "TOPS_", "ECCL_", "TORCH_GCU", "PYTORCH_GCU")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(vendor)}
    always = {"BERTBENCH_SIMULATE": "gcu", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=ROOT,
        env=inherited | always | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "USDT" not in done.stderr  # the profiler keeps off the console
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        build.library()
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain(compiler: None) -> dict[str, Any]:
    """No variable of Enflame's is set."""
    return look()


@pytest.fixture(scope="module")
def switched(compiler: None) -> dict[str, Any]:
    """Every switch the other way; two operations fall back; no bfloat16; one device visible."""
    return look(
        ENFLAME_ENABLE_TF32="true",
        ENFLAME_PT_GELU_ERF_ENABLE="true",
        TORCH_GCU_ENABLE_INT64_AND_UINT64="true",
        ENFLAME_PT_OP_DEBUG_CONFIG="fallback_cpu=add op_statistics=true dump_path=/private/log",
        TOPS_EXE_CACHE_PATH="/private/cache",
        TOPS_VISIBLE_DEVICES="1,0",
        PYTORCH_GCU_ALLOC_CONF="backend:topsMallocAsync",
        BERTBENCH_SIMULATED_LACKS="bf16",
        BERTBENCH_SIMULATED_NO_TELEMETRY="1",
        BERTBENCH_SIMULATED_FALLBACK="aten::gelu,aten::gelu_backward",
    )


def test_what_it_is(plain: dict[str, Any]) -> None:
    assert plain["class"] == "bertbench.backends.gcu.backend.Gcu"
    assert plain["probe"] == "2 devices"
    assert plain["index"] == 1
    assert plain["simulated"] is True
    assert plain["runtime"].startswith("torch_gcu 2.10")
    assert plain["collective"] == "eccl"
    assert plain["timer"] is plain["memory"] is True
    assert plain["extras"] == {}
    assert plain["scaler"] == [True, False]


def test_without_the_switch_float_is_fp32_and_tf32_is_refused(plain: dict[str, Any]) -> None:
    assert plain["precisions"] == ["bf16", "fp16", "fp32"]
    assert "ENFLAME_ENABLE_TF32 is not set" in plain["refused"]["tf32"]
    assert "start with ENFLAME_ENABLE_TF32=true" in plain["refused"]["tf32"]
    assert plain["checks"]["fp32"]["product_mantissa_bits"] == "23"


def test_with_the_switch_float_is_tf32_and_fp32_is_refused(switched: dict[str, Any]) -> None:
    assert switched["precisions"] == ["fp16", "tf32"]
    assert "ENFLAME_ENABLE_TF32 is true" in switched["refused"]["fp32"]
    assert "start with ENFLAME_ENABLE_TF32=false" in switched["refused"]["fp32"]
    assert switched["checks"]["tf32"]["product_mantissa_bits"] == "10"


def test_bfloat16_that_the_device_lacks_is_refused(switched: dict[str, Any]) -> None:
    assert "it has fp16, tf32" in switched["refused"]["bf16"]
    assert "the device reports no bfloat16" in switched["notes"]["bf16"]


def test_the_forms_that_differ_name_the_variable_that_mends_them(
    plain: dict[str, Any], switched: dict[str, Any]
) -> None:
    for facts in plain["checks"].values():
        assert facts["gelu"] == "tanh"
        assert "ENFLAME_PT_GELU_ERF_ENABLE=true" in facts["gelu_note"]
        assert facts["int64"] == "narrowed to 32 bits"
        assert "TORCH_GCU_ENABLE_INT64_AND_UINT64=true" in facts["int64_note"]
    for facts in switched["checks"].values():
        assert (facts["gelu"], facts["int64"]) == ("erf", "kept")
        assert not any(key.endswith("_note") for key in facts)


def test_the_variables_are_recorded_without_this_machines_paths(switched: dict[str, Any]) -> None:
    assert switched["extras"] == {
        "ENFLAME_ENABLE_TF32": "true",
        "ENFLAME_PT_GELU_ERF_ENABLE": "true",
        "TORCH_GCU_ENABLE_INT64_AND_UINT64": "true",
        "ENFLAME_PT_OP_DEBUG_CONFIG": "fallback_cpu=add op_statistics=true",
        "TOPS_EXE_CACHE_PATH": "set",
        "TOPS_VISIBLE_DEVICES": "1,0",
        "PYTORCH_GCU_ALLOC_CONF": "backend:topsMallocAsync",
    }


def test_fallbacks_are_counted_forward_and_backward(
    plain: dict[str, Any], switched: dict[str, Any]
) -> None:
    assert plain["unused"] == plain["used"] == {}
    assert switched["unused"] == {}
    assert switched["used"] == {"aten::gelu": 3, "aten::gelu_backward": 3}
    # The device's own count: that, and one of gelu in each check of a precision.
    assert switched["counted"] == {"aten::gelu": 5, "aten::gelu_backward": 3}


def test_power_is_read_from_the_stand_ins_library(plain: dict[str, Any]) -> None:
    source, samples = plain["sensors"]
    assert source == "pyefml"
    assert len(samples) == 2
    assert all(10 < sample["power_w"] < 1000 for sample in samples)
    assert all(sample["throttled"] == 0 for sample in samples)


def test_without_sensors_the_reason_is_noted(switched: dict[str, Any]) -> None:
    assert switched["sensors"] is None
    assert "pyefml" in switched["notes"]["power"]


def test_auto_takes_fused_attention_and_a_16_bit_residual_stream(plain: dict[str, Any]) -> None:
    assert not {"norm", "sdpa"} & plain["notes"].keys()
    for precision, kernels in plain["kernels"].items():
        assert kernels["attention"] == "fused-sdpa-per-sequence"
        norm = {"bf16": "torch-bfloat16", "fp16": "torch-float16"}.get(precision)
        assert kernels.get("norm") == norm


def test_no_compiler_is_claimed_that_is_not_registered(plain: dict[str, Any]) -> None:
    assert plain["compilers"] == []
    assert "TORCHGCU_INDUCTOR_ENABLE=1" in plain["notes"]["compile"]


# -- in this process: nothing below imports torch_gcu ----------------------------------------------
def test_inductor_counts_when_torch_gcu_enabled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    early = SimpleNamespace(gcu_inductor_enable=False)
    monkeypatch.setitem(sys.modules, "torch.gcu.inductor.backend_register", early)
    assert not gcu._registered("inductor")
    early.gcu_inductor_enable = True
    assert gcu._registered("inductor")


def test_topsgraph_counts_when_dynamo_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch._dynamo.backends.registry"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(_BACKENDS={"eager": None}))
    assert not gcu._registered("topsgraph")
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(_BACKENDS={"topsgraph": None}))
    assert gcu._registered("topsgraph")
    monkeypatch.delitem(sys.modules, name)
    offered = [EntryPoint("topsgraph", "x:y", "torch_dynamo_backends")]
    monkeypatch.setattr(gcu, "entry_points", lambda group: offered)
    assert gcu._registered("topsgraph")


@pytest.mark.parametrize("module", ["torch_gcu.transfer_to_gcu", "transfer_to_gcu"])
def test_it_refuses_where_other_devices_were_renamed(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    answer = gcu.Gcu.probe()
    assert not answer.ok
    assert "transfer_to_gcu was imported" in answer.reason
    with pytest.raises(Unsupported, match="Run without that import"):
        gcu.Gcu()


def test_it_refuses_where_torch_gcu_says_that_it_renamed_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_gcu", SimpleNamespace(is_transfer_to_gcu=True))
    assert "transfer_to_gcu was imported" in gcu.Gcu.probe().reason


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ENFLAME_TORCH_GCU_ENABLE_AUTO_MIGRATION", "true", "unset it"),
        ("ENFLAME_PT_OP_DEBUG_CONFIG", "fallback_cpu=all_ops,-add", "on the host. Unset it"),
        ("ENFLAME_PT_OP_DEBUG_CONFIG", "op_check=all_ops", "on the host. Unset it"),
    ],
)
def test_it_refuses_variables_that_make_numbers_worthless(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    answer = gcu.Gcu.probe()
    assert not answer.ok
    assert variable in answer.reason
    assert reason in answer.reason


def test_it_says_that_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENFLAME_PT_OP_DEBUG_CONFIG", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gcu.Gcu.probe().reason == "package torch_gcu is not installed"


@pytest.mark.parametrize(
    ("number", "status", "version"), [(3071, 0, "3.7"), (12345, 0, "12.34"), (3071, 1, None)]
)
def test_the_version_of_the_tops_runtime(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int, version: str | None
) -> None:
    def get_version(pointer: Any) -> int:
        pointer._obj.value = number
        return status

    library = SimpleNamespace(topsRuntimeGetVersion=get_version)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libtopsrt.so.1": library}[name])
    assert gcu.tops_runtime() == version


def test_no_tops_runtime_is_no_version() -> None:
    assert gcu.tops_runtime() is None


# -- fallbacks -------------------------------------------------------------------------------------
def test_a_copy_to_the_host_belongs_to_the_operation_above_it() -> None:
    gelu, other, add = (SimpleNamespace(name=n) for n in ("aten::gelu", "aten::gelu", "aten::add"))
    copies = [gelu, gelu, other, add, None]
    events = [SimpleNamespace(name="aten::_to_cpu", cpu_parent=parent) for parent in copies]
    events.append(SimpleNamespace(name="aten::_to_copy", cpu_parent=add))
    assert fallbacks.count(events) == {"aten::gelu": 2, "aten::add": 1}


def test_a_copy_that_was_asked_for_is_no_fallback() -> None:
    with fallbacks.watch() as seen:
        torch.ones(2).to("cpu", torch.float64).cpu()
    assert seen == {}


def test_another_profiler_is_left_alone_and_nothing_is_claimed() -> None:
    with fallbacks.watch() as outer, fallbacks.watch() as inner:
        torch.ones(2)
    assert outer == {}
    assert inner is None


@pytest.mark.parametrize(
    ("level", "modules", "on"),
    [
        ("DEBUG", "TORCH_GCU/FALLBACK", True),
        ("DEBUG", "TORCH_GCU/OP, TORCH_GCU/FALLBACK", True),
        ("DEBUG", "TORCH_GCU", True),
        ("DEBUG", "TORCH_GCU/OP", False),
        ("INFO", "TORCH_GCU/FALLBACK", False),
        (None, "TORCH_GCU/FALLBACK", False),
    ],
)
def test_the_log_needs_both_variables(level: str | None, modules: str, on: bool) -> None:
    env = {"ENFLAME_LOG_DEBUG_MOD": modules}
    assert fallback_log.enabled(env if level is None else env | {"ENFLAME_LOG_DEBUG_LEVEL": level})\
        is on  # fmt: skip


LOG = """\
[12:00:01.5 DEBUG TORCH_GCU/FALLBACK] aten::gelu.out not supported in torch_gcu, and fallback to \
torch cpu.
something else fallback to torch cpu
aten::gelu not supported in torch_gcu, and fallback to torch cpu.
tops::thing_ not supported in torch_gcu, and fallback to torch cpu."""
"""The sentence is that of torch-gcu's gcu_cpu_fallback; what stands before it is made up."""


def test_the_log_is_counted_and_still_arrives(tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"before\n")
        with pytest.raises(KeyError), fallback_log.watch(descriptor) as seen:
            os.write(descriptor, LOG.encode())
            raise KeyError
        os.write(descriptor, b"\nafter")
    finally:
        os.close(descriptor)
    assert seen == {"aten::gelu": 2, "tops::thing_": 1}
    assert path.read_text() == f"before\n{LOG}\nafter"


def test_the_log_and_the_profile_are_one_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENFLAME_LOG_DEBUG_LEVEL", "DEBUG")
    monkeypatch.setenv("ENFLAME_LOG_DEBUG_MOD", "TORCH_GCU/FALLBACK")
    with gcu._watch_fallbacks() as seen:
        os.write(2, LOG.encode())
    assert seen == {"aten::gelu": 2, "tops::thing_": 1}
    assert capfd.readouterr().err == LOG
    with fallbacks.watch(), gcu._watch_fallbacks() as seen:  # the log alone, then
        os.write(2, LOG.encode())
    assert seen == {"aten::gelu": 2, "tops::thing_": 1}
    monkeypatch.delenv("ENFLAME_LOG_DEBUG_LEVEL")
    with fallbacks.watch(), gcu._watch_fallbacks() as seen:
        pass
    assert seen is None
