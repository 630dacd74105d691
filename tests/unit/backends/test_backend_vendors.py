# SPDX-License-Identifier: Apache-2.0
"""The adapters that are a few lines over the default: names, switches, sensors, refusals.

npu, mlu and musa are run on the simulated accelerator under their names, in a process of their
own; hpu, xpu and mps, which torch knows itself, with fake modules.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import fake_tools
import pytest
import torch

from bertbench.backends import BUILT_IN, load
from bertbench.backends.hpu.backend import Hpu
from bertbench.backends.mps.backend import Mps
from bertbench.backends.xpu.backend import Xpu
from bertbench.common.errors import Unsupported

ROOT = Path(__file__).parents[3]
UNTRIED = ("npu", "musa", "mlu", "hpu", "xpu", "mps", "rocm", "corex")


@pytest.mark.parametrize("name", UNTRIED)
def test_nothing_is_claimed_beyond_documents(name: str) -> None:
    backend = load(name)
    assert (backend.name, backend.verified) == (name, "documents")


@pytest.mark.parametrize("name", UNTRIED)
def test_without_the_vendors_software_it_is_one_line(name: str) -> None:
    probe = load(name).probe()
    assert not probe.ok
    assert "\n" not in probe.reason
    # Found without importing a vendor's package; corex needs a device's name on a CUDA build.
    assert load(name).absent() in (probe.reason, None if name == "corex" else probe.reason)


def test_an_npu_is_never_taken_for_another_vendors_device() -> None:
    # The shims that make CUDA code run on these devices are imported nowhere.
    for name in UNTRIED:
        for path in (ROOT / "backends" / name).glob("*.py"):
            imports = [line for line in path.read_text().splitlines() if "import" in line.split()]
            assert not any("transfer" in line or "torchada" in line for line in imports)
    assert set(UNTRIED) <= set(BUILT_IN)


# -- on the simulated accelerator -----------------------------------------------------------------
VENDORS = {
    "npu": ("torch_npu", "hccl", "ASCEND_RT_VISIBLE_DEVICES"),
    "mlu": ("torch_mlu", "cncl", "MLU_VISIBLE_DEVICES"),
    "musa": ("torch_musa", "mccl", "MUSA_VISIBLE_DEVICES"),
}
PACKAGE = """
from types import ModuleType
import torch
from bertbench.backends.simulated import collective
from bertbench.backends.simulated.device import install

SIMULATED, __version__ = True, "2.99"
module = install({name!r})
collective.register({collective!r}, {name!r})

class Switch(ModuleType):
    @property
    def allow_tf32(self):
        return bool(module._library.get("tf32"))
    @allow_tf32.setter
    def allow_tf32(self, on):
        module._library.set("tf32", int(on) if {works} else 0)
    allow_hf32 = allow_tf32

def under(name):
    setattr(torch.backends, name, Switch(name))
    return getattr(torch.backends, name)

if {name!r} == "npu":
    module.matmul, module.conv = Switch("matmul"), Switch("conv")
elif {name!r} == "mlu":
    under("mlu").matmul = Switch("matmul")
    under("cnnl")
elif {switch}:
    under("mudnn")
"""
RUN = """
import sys, torch
from bertbench import backends
from bertbench.backends.base import Unsupported
Backend = backends.load(sys.argv[1])
print("probe", Backend.probe())
backend = Backend()
have = backend.capabilities
print("precisions", *sorted(have.precisions))
print("collective", have.collective)
print("power", have.notes.get("power"))
print("tf32", have.notes.get("tf32"))
print("simulated", backend.describe().simulated, backend.describe().runtime)
print("extras", dict(backend.describe().extras))
for name in ("fp32", "tf32", "fp32"):
    try:
        print("bits", name, backend.verify_precision(name)["product_mantissa_bits"])
    except Unsupported as error:
        print("refused", error)
"""


def _run(folder: Path, name: str, *, works: bool = True, switch: bool = True) -> str:
    package, collective, variable = VENDORS[name]
    text = PACKAGE.format(name=name, collective=collective, works=works, switch=switch)
    (folder / f"{package}.py").write_text(text)
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        variable: "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, name], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", VENDORS)
def test_the_adapter_runs_on_a_device_of_that_name(tmp_path: Path, name: str) -> None:
    package, collective, variable = VENDORS[name]
    said = _run(tmp_path, name).splitlines()
    assert said[0].startswith("probe Probe(ok=True")
    assert said[1] == "precisions bf16 fp16 fp32 tf32"
    assert said[2] == f"collective {collective}"
    assert "not found" in said[3] or "pymtml" in said[3]
    assert said[4] == "tf32 None"
    assert said[5] == f"simulated True {package} 2.99"
    assert said[6] == f"extras {{'{variable}': '0'}}"
    assert said[7:] == ["bits fp32 23", "bits tf32 10", "bits fp32 23"]


def test_a_switch_without_effect_is_refused(tmp_path: Path) -> None:
    said = _run(tmp_path, "npu", works=False).splitlines()
    assert said[7] == "bits fp32 23"
    assert said[8].startswith("refused npu: tf32 was requested, but matrix products keep 23 bits")


def test_a_switch_that_is_not_there_is_not_offered(tmp_path: Path) -> None:
    said = _run(tmp_path, "musa", switch=False).splitlines()
    assert said[1] == "precisions bf16 fp16 fp32"
    assert "no switch" in said[4]
    assert said[8].startswith("refused musa: no 'tf32' here")


# -- hpu ------------------------------------------------------------------------------------------
HABANA = {
    "__init__.py": "",
    "torch/__init__.py": "",
    "torch/core.py": "import torch\ndef mark_step():\n    torch.hpu.calls.append('mark')\n",
    "torch/distributed/__init__.py": "",
    "torch/distributed/hccl.py": (
        "import torch\ndef initialize_distributed_hpu():\n    torch.hpu.calls.append('choose')\n"
    ),
}


@pytest.fixture
def gaudi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package habana_frameworks and a torch.hpu that note their calls."""
    for name, text in HABANA.items():
        path = tmp_path / "habana_frameworks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("WORLD_SIZE", "LOCAL_RANK", "HABANA_VISIBLE_MODULES"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in sys.modules if name.startswith("habana_frameworks")]:
        monkeypatch.delitem(sys.modules, name)
    calls: list[str] = []
    hpu = ModuleType("torch.hpu")

    def note(what: str) -> Callable[..., None]:
        return lambda *_: calls.append(what)

    for name, value in {
        "calls": calls,
        "device_count": lambda: 8,
        "synchronize": note("synchronize"),
        "manual_seed_all": note("seed"),
        "set_device": note("set_device"),
    }.items():
        setattr(hpu, name, value)
    monkeypatch.setattr(torch, "hpu", hpu, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda _: hpu)  # the real one remembers
    yield calls
    for name in [name for name in sys.modules if name.startswith("habana_frameworks")]:
        del sys.modules[name]


def test_a_gaudi_marks_the_step_before_it_waits_and_around_the_update(gaudi: list[str]) -> None:
    hpu = Hpu()
    assert hpu.device == torch.device("hpu", 0)
    gaudi.clear()
    hpu.synchronize()
    assert gaudi == ["mark", "synchronize"]
    gaudi.clear()
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.register_step_pre_hook(lambda *_: gaudi.append("step"))
    hpu.optimizer_step(optimizer, torch.amp.GradScaler("cpu", enabled=False))
    assert gaudi == ["mark", "step", "mark"]
    assert weight.item() == -1.0
    # An event of lazy mode would be recorded before the work: the host's clock, after a wait.
    assert not hpu.has_device_timer({})
    gaudi.clear()
    hpu.seed(7)
    assert gaudi == ["seed"]


def test_a_gaudi_is_chosen_by_the_launchers_rank(
    gaudi: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unsupported, match="launcher"):
        Hpu(1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    hpu = Hpu(3)
    assert gaudi[0] == "choose"
    assert hpu.device.index == 0  # a process has one, whichever it is
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "0,3,5,6")
    monkeypatch.setitem(sys.modules, "pyhlml", fake_tools.hlml(0))
    assert hpu.sensors().read()["power_w"] == 98.0  # module 6


# -- xpu ------------------------------------------------------------------------------------------
@pytest.fixture
def intel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A torch.xpu of two GPUs in a torch that was built for them."""
    xpu = ModuleType("torch.xpu")
    for name, value in {
        "device_count": lambda: 2,
        "set_device": lambda device: None,
        "is_tf32_supported": lambda: True,
        "power_draw": lambda index: 120.5 + index,
        "temperature": lambda index: 41.0,
        "clock_rate": lambda index: 1550.0,
        "device_memory_used": lambda index: 2**30,
    }.items():
        setattr(xpu, name, value)
    monkeypatch.setattr(torch, "get_device_module", lambda _: xpu)  # the real one remembers
    monkeypatch.setattr(torch.version, "xpu", "20250302")
    return xpu


def test_an_intel_gpu_is_found_and_its_sensors_read(intel: ModuleType) -> None:
    assert Xpu.probe().reason == "2 devices"
    sensors = Xpu(1).sensors()
    assert sensors.read() == {
        "power_w": 121.5,
        "memory_used_bytes": 2**30,
        "temperature_c": 41.0,
        "sm_clock_mhz": 1550.0,
    }
    assert sensors.period_s == 0.5  # a reading of its power takes a tenth of a second


def test_a_torch_without_sensors_or_without_rights_says_so(intel: ModuleType) -> None:
    for name in ("temperature", "clock_rate", "device_memory_used"):
        delattr(intel, name)

    def refuse(index: int) -> float:
        raise RuntimeError("GPU power draw querying is not available. Try sudo.")

    intel.power_draw = refuse  # type: ignore[attr-defined]
    xpu = Xpu()
    assert xpu.telemetry() is None
    assert xpu.no_power_reason == (
        "power_w: RuntimeError: GPU power draw querying is not available. Try sudo."
    )
    del intel.power_draw
    assert xpu.telemetry() is None
    assert xpu.no_power_reason == "no sensor of this device answers"


def test_kunlunxins_xpu_is_not_intels(
    intel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_xmlir.py").write_text("raise SystemExit('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not Xpu.probe().ok
    assert "Kunlunxin" in Xpu.probe().reason


def test_xccl_and_tf32_depend_on_the_build_and_the_gpu(
    intel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    xpu = Xpu()
    notes: dict[str, str] = {}
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: True, raising=False)
    assert (xpu.find_collective(notes), notes) == ("xccl", {})
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: False)
    assert xpu.find_collective(notes) is None
    assert "xccl" in notes["collective"]
    assert xpu.float_precisions({}) == ["tf32", "fp32"]
    intel.is_tf32_supported = lambda: False  # type: ignore[attr-defined]
    assert xpu.float_precisions(notes) == ["fp32"]
    assert "matrix units" in notes["tf32"]


# -- mps ------------------------------------------------------------------------------------------
def test_an_apple_gpu_is_one_device_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "no Apple GPU" in Mps.probe().reason
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**34)
    mps = Mps()
    assert mps.memory_bytes() == 2**34
    assert not hasattr(mps.module, "max_memory_allocated")  # torch.mps counts no peak
    assert mps.telemetry() is None
    assert "root" in mps.no_power_reason
    with pytest.raises(Unsupported, match="one device"):
        Mps(1)
    with pytest.raises(Unsupported, match="run it as one process"):
        mps.__dict__["capabilities"] = SimpleNamespace(collective=None)
        mps.init_process_group()


def test_apples_fallback_to_the_host_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert Mps.extras(Mps.__new__(Mps)) == {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
