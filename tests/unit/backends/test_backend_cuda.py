# SPDX-License-Identifier: Apache-2.0
"""The cuda adapter over a stand-in for torch's module: who is refused, what is offered, recorded.

Nothing here ran on a GPU; the contract tests do where there is one.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bertbench.backends import selfcheck
from bertbench.backends.cuda import identify, nvml, packages
from bertbench.backends.cuda.backend import Cuda
from bertbench.backends.sensors import Sensors
from bertbench.common.errors import Unsupported
from bertbench.common.masks.attach import RecipeMask
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.model.ops import Ops
from bertbench.common.optim.factory import build_optimizer

STAR = AttentionMask.of("star")


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 0.0


class Machine(SimpleNamespace):
    """What torch's module for the device shows of one machine."""

    Event, CUDAGraph = Event, object

    def __init__(self, **changes: Any) -> None:
        facts = {
            "name": "NVIDIA H100 80GB HBM3", "capability": (9, 0), "count": 2, "error": None,
            "builds": ["sm_80", "sm_90", "compute_90"],
        }  # fmt: skip
        super().__init__(**{**facts, **changes})
        self.nccl = SimpleNamespace(version=lambda: (2, 27, 5))

    def init(self) -> None:
        warnings.warn("CUDA initialization: never to be seen", UserWarning, stacklevel=2)
        if self.error is not None:
            raise self.error

    def device_count(self) -> int:
        return int(self.count)

    def get_device_name(self, index: int) -> str:
        return str(self.name)

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.capability

    def get_arch_list(self) -> list[str]:
        return list(self.builds)

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(
            uuid="11112222-aaaa", multi_processor_count=132, total_memory=80 << 30
        )

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 1 << 30, 80 << 30

    def get_rng_state(self) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor) -> None: ...
    def set_device(self, device: torch.device) -> None: ...
    def synchronize(self) -> None: ...
    def max_memory_allocated(self) -> int:
        return 123


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Puts a machine in torch's place; by default a good one of NVIDIA's without packages."""

    def put(
        *, version: str = "2.13.0+cu130", cuda: str | None = "13.0", hip: str | None = None,
        traces: tuple[str, ...] = (), kernels: dict[tuple[str, torch.dtype], str] | None = None,
        norms: dict[torch.dtype, str] | None = None, sensors: Any = None,
        scaled: str | None = None, **changes: Any,
    ) -> Machine:  # fmt: skip
        made = Machine(**changes)
        monkeypatch.setattr(torch, "get_device_module", lambda device: made)
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr("shutil.which", lambda name: name if name in traces else None)
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: name if name in traces else None
        )
        monkeypatch.setattr(identify.Path, "is_dir", lambda self: str(self) in traces)
        monkeypatch.setattr(Cuda, "autocast_problem", lambda self, dtype: None)
        failing = kernels or {}

        def why_not(
            ops: Ops, device: torch.device, dtype: torch.dtype, tolerance: float | None = None,
            *, masked: bool = False,
        ) -> str | None:  # fmt: skip
            assert (device, tolerance) == (torch.device("cuda", 0), None)
            return failing.get((f"masked {ops.name}" if masked else ops.name, dtype))

        monkeypatch.setattr(selfcheck, "attention_why_not", why_not)
        monkeypatch.setattr(
            selfcheck, "norm_why_not", lambda device, dtype, _: (norms or {}).get(dtype)
        )
        monkeypatch.setattr(selfcheck, "scaled_product_why_not", lambda device: scaled)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        monkeypatch.setattr(nvml, "driver_version", lambda: "580.65.06")

        def open_nvml(index: int, visible: str | None, uuid: str | None) -> Any:
            assert uuid == "11112222-aaaa"
            if isinstance(sensors, Exception):
                raise sensors
            return sensors or (Sensors(lambda: {"power_w": 1.0}, "nvml (energy)"), None)

        monkeypatch.setattr(nvml, "open_nvml", open_nvml)
        for name in (*Cuda.recorded_env, "CUDA_VISIBLE_DEVICES", "CC"):
            monkeypatch.delenv(name, raising=False)
        return made

    return put


# -- whether it can run ----------------------------------------------------------------------
def test_a_torch_without_cuda_is_absent_before_anything_is_asked(machine: Any) -> None:
    machine(cuda=None, version="2.13.0+cpu", error=AssertionError("must not be asked"))
    assert Cuda.absent() == "this torch was built without CUDA"
    assert Cuda.probe().reason == "this torch was built without CUDA"


def test_a_working_device_is_counted_and_torch_warns_of_nothing(machine: Any) -> None:
    machine(count=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Cuda.probe() == (answer := Cuda.probe())
    assert answer.ok
    assert answer.reason == "2 devices"


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/x"
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed "
    "a driver from http://www.nvidia.com/Download/index.aspx"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NO_DRIVER, "no NVIDIA driver is loaded on this machine"),
        (
            TOO_OLD,
            "driver too old: it serves CUDA 12.8, this torch needs CUDA 13.0; update the driver, "
            "or install a torch built for an older CUDA",
        ),
        ("No CUDA GPUs are available", "no device"),
        (
            "CUDA unknown error - this may be due to an incorrectly set up environment\nmore",
            "no working device: RuntimeError: CUDA unknown error - this may be due to an "
            "incorrectly set up environment",
        ),
    ],
)
def test_each_way_of_having_no_device_is_one_line(machine: Any, error: str, reason: str) -> None:
    machine(count=0, error=RuntimeError(error))
    assert Cuda.probe().reason == reason
    assert not Cuda.probe().ok


def test_hidden_devices_are_named_without_their_ids(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(count=0, error=RuntimeError("No CUDA GPUs are available"))
    for value, shown in (("", "''"), ("-1", "'-1'"), ("GPU-1a2b-3c,MIG-4d", "'GPU-...,MIG-...'")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert Cuda.probe().reason == f"no device (CUDA_VISIBLE_DEVICES={shown})"


@pytest.mark.parametrize(
    ("capability", "builds", "ok"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80"], True),  # a later minor version of the same major
        ((8, 0), ["sm_86"], False),
        ((7, 0), ["sm_80", "compute_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled at first use
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((12, 1), ["sm_120a"], True),
        ((7, 1), [], True),  # another vendor's build says nothing
        ((9, 4), ["gfx90a", "gfx942"], True),
    ],
)
def test_a_build_without_code_for_the_device_is_refused(
    machine: Any, capability: tuple[int, int], builds: list[str], ok: bool
) -> None:
    machine(capability=capability, builds=builds, name="NVIDIA X")
    assert Cuda.probe().ok == ok
    if not ok:
        version = ".".join(map(str, capability))
        assert f"compute capability {version}" in Cuda.probe().reason
        assert ", ".join(builds) in Cuda.probe().reason


# -- whose device it is ----------------------------------------------------------------------
ROCM, COREX = "use --backend rocm", "use --backend corex"
NO_ADAPTER = "bertbench has no adapter for it yet"


@pytest.mark.parametrize(
    ("found", "key", "advice"),
    [
        ({"name": "Tesla V100-SXM2-16GB", "capability": (7, 0), "builds": ["sm_70"]}, "nvidia", ""),
        ({"name": "NVIDIA A100-SXM4-40GB", "traces": ("ixsmi", "/opt/maca")}, "nvidia", ""),
        ({"name": "A100-SXM4-40GB"}, "nvidia", ""),
        ({"hip": "6.3.1", "cuda": None, "name": "AMD Instinct MI300X"}, "amd", ROCM),
        (
            {"hip": "6.3.1", "cuda": None, "name": "K100", "traces": ("hy-smi",)},
            "hygon",
            NO_ADAPTER,
        ),
        ({"hip": "6.3.1", "cuda": None, "version": "2.4.1+das.opt2.dtk2504"}, "hygon", NO_ADAPTER),
        ({"hip": "6.3.1", "cuda": None, "traces": ("/opt/hyhal",)}, "hygon", NO_ADAPTER),
        ({"version": "2.7.1+corex.4.4.0", "cuda": "10.2", "name": "NVIDIA?"}, "iluvatar", COREX),
        ({"version": "2.7.1", "cuda": "10.2", "name": "Iluvatar BI-V150"}, "iluvatar", COREX),
        ({"version": "2.7.1", "name": "GPU", "traces": ("/usr/local/corex",)}, "iluvatar", COREX),
        ({"version": "2.7.1", "name": "GPU", "traces": ("ixsmi",)}, "iluvatar", COREX),
        ({"version": "2.8.0+metax3.5.3.9", "cuda": "11.6", "name": "x"}, "metax", NO_ADAPTER),
        ({"cuda": "11.6", "name": "MetaX C500"}, "metax", NO_ADAPTER),
        ({"cuda": "11.6", "name": "GPU", "traces": ("mx-smi",)}, "metax", NO_ADAPTER),
        ({"name": "P800 OAM", "traces": ("torch_xmlir",)}, "kunlunxin", NO_ADAPTER),
        ({"name": "GPU", "traces": ("torch_xmlir",)}, "kunlunxin", NO_ADAPTER),
        ({"name": "PPU-ZW810E"}, "thead", NO_ADAPTER),
    ],
)
def test_vendors_behind_the_same_name_are_told_apart(
    machine: Any, found: dict[str, Any], key: str, advice: str
) -> None:
    machine(**found)
    assert identify.vendor(found.get("name", "")).key == key
    answer = Cuda.probe()
    assert answer.ok == (key == "nvidia")
    assert advice in answer.reason


def test_a_vendor_that_subclasses_takes_its_own_devices_only(machine: Any) -> None:
    class Corex(Cuda):
        name, vendor, toolkit = "corex", "iluvatar", "CoreX"
        minimum_capability = {}  # noqa: RUF012

    machine(version="2.7.1+corex.4.4.0", cuda="10.2", name="Iluvatar BI-V150", capability=(7, 1))
    assert Corex.probe().ok
    offered = Corex(0).capabilities.precisions
    assert offered == ("bf16", "fp16", "tf32", "fp32")  # nothing is ruled out by its number
    machine(name="NVIDIA H100 80GB HBM3")
    assert Corex.probe().reason == "found a device of NVIDIA: use --backend cuda"
    machine(cuda=None)
    assert Corex.probe().reason == "this torch was built without CoreX"


# -- precisions ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("capability", "offered"),
    [
        ((9, 0), ("bf16", "fp16", "tf32", "fp32")),
        ((8, 0), ("bf16", "fp16", "tf32", "fp32")),
        ((7, 5), ("fp16", "fp32")),
        ((6, 1), ("fp32",)),
    ],
)
def test_precisions_follow_the_matrix_units(
    machine: Any, capability: tuple[int, int], offered: tuple[str, ...]
) -> None:
    machine(capability=capability, builds=[])
    cuda = Cuda(0)
    assert cuda.capabilities.precisions == offered
    for missing in {"bf16", "fp16", "tf32"} - set(offered):
        needs = "7.0" if missing == "fp16" else "8.0"
        with pytest.raises(Unsupported, match=f"needs compute capability {needs}, this is"):
            cuda.precision(missing)


def test_tf32_is_switched_and_read_back(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    cuda = Cuda(0)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        for name, wanted in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
            cuda.precision(name)
            assert (products.allow_tf32, convolutions.allow_tf32) == (wanted, wanted)
            assert products.fp32_precision == ("tf32" if wanted else "ieee")
        # The newer switch was used by somebody else: the older one must still win, not raise.
        products.fp32_precision = "tf32"
        cuda.precision("fp32")
        assert products.fp32_precision == "ieee"
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
    stubborn = SimpleNamespace(allow_tf32=True)

    class Ignores:
        def __setattr__(self, name: str, value: object) -> None: ...
        def __getattr__(self, name: str) -> object:
            return getattr(stubborn, name)

    monkeypatch.setattr(torch.backends.cuda, "matmul", Ignores())
    with pytest.raises(Unsupported, match=r"allow_tf32 stays True although set False"):
        cuda.precision("fp32")


# -- kernels ---------------------------------------------------------------------------------
def test_auto_takes_the_fastest_kernel_that_works_in_this_precision(machine: Any) -> None:
    machine()
    cuda = Cuda(0)
    assert cuda.capabilities.kernels == ("flash", "efficient", "sdpa", "plain")
    assert cuda.ops("auto", "bf16").kernels["attention"] == "flash-varlen"
    assert cuda.ops("auto", "fp16").kernels["attention"] == "flash-varlen"
    for precision in ("fp32", "tf32"):
        kernels = cuda.ops("auto", precision).kernels  # not for want of anything
        assert kernels == {"attention": "efficient-varlen", "other": "torch"}
    assert cuda.ops("efficient", "bf16").kernels["attention"] == "efficient-varlen"
    assert cuda.ops("sdpa", "bf16").kernels["attention"] == "fused-sdpa-per-sequence"
    assert cuda.ops("plain", "bf16").kernels == Ops().kernels
    with pytest.raises(Unsupported, match="'flash' in fp32: computes in 16-bit floats only"):
        cuda.ops("flash", "fp32")
    assert [cuda.ops(k, "bf16").name for k in ("auto", "plain")] == ["flash", "plain"]
    assert cuda.lamb_kernel("auto") is None


def test_the_residual_stream_is_in_the_compute_type_where_norms_work_in_it(machine: Any) -> None:
    machine(norms={torch.float16: "its output is off by 1.0e-02 of the largest value"})
    cuda = Cuda(0)
    for kernels in ("auto", "flash", "efficient", "sdpa"):
        assert cuda.ops(kernels, "bf16").kernels["norm"] == "torch-bfloat16"
        assert "norm" not in cuda.ops(kernels, "fp16").kernels
    for precision in ("fp32", "tf32"):
        assert "norm" not in cuda.ops("auto", precision).kernels
    assert cuda.capabilities.notes["norm"].startswith("in fp16: its output is off by")


def test_a_kernel_that_fails_is_passed_over_and_both_are_recorded(machine: Any) -> None:
    broken = {
        ("flash", torch.bfloat16): "RuntimeError: FlashAttention only supports Ampere GPUs",
        ("flash", torch.float16): "RuntimeError: FlashAttention only supports Ampere GPUs",
        ("efficient", torch.bfloat16): "its gradient differs",
    }
    machine(kernels=broken)
    cuda = Cuda(0)
    found = cuda.capabilities
    assert found.kernels == ("efficient", "sdpa", "plain")
    assert "in bf16: RuntimeError: FlashAttention only" in found.notes["flash"]
    assert found.notes["efficient"] == "in bf16: its gradient differs"
    kernels = cuda.ops("auto", "bf16").kernels
    assert kernels == {
        "attention": "fused-sdpa-per-sequence",
        "norm": "torch-bfloat16",
        "other": "torch",
        "attention_passed_over": "flash: RuntimeError: FlashAttention only supports Ampere GPUs; "
        "efficient: its gradient differs",
    }
    assert cuda.ops("auto", "fp16").kernels["attention"] == "efficient-varlen"
    with pytest.raises(Unsupported, match="'flash' unavailable: in bf16: RuntimeError"):
        cuda.ops("flash", "bf16")
    with pytest.raises(Unsupported, match="'efficient' in bf16: its gradient differs"):
        cuda.ops("efficient", "bf16")


def test_without_any_fused_attention_the_references_is_left(machine: Any) -> None:
    """torch's SDPA may take the very kernel that failed its trial: it is tried as well."""
    failing = {(k, torch.bfloat16): "its output differs" for k in ("flash", "efficient", "sdpa")}
    machine(kernels=failing)
    ops = Cuda(0).ops("auto", "bf16")
    assert (ops.name, ops.kernels["attention"]) == ("plain", "unfused-per-sequence")
    assert ops.kernels["norm"] == "torch-bfloat16"
    assert "sdpa: its output differs" in ops.kernels["attention_passed_over"]
    with pytest.raises(Unsupported, match="'sdpa' in bf16: its output differs"):
        Cuda(0).ops("sdpa", "bf16")


# -- masks -----------------------------------------------------------------------------------
COMPILES = ("triton", "gcc")


def test_masked_attention_is_flex_where_it_works(machine: Any) -> None:
    machine(traces=COMPILES)
    cuda = Cuda(0)
    assert cuda.capabilities.kernels == ("flash", "efficient", "sdpa", "plain", "flex", "triton")
    for kernels in ("auto", "flex"):
        ops = cuda.masked_ops(kernels, "bf16")
        assert (ops.name, ops.masked_kernel) == ("flex", "flex-kept-blocks")
        assert ops.kernels["norm"] == "torch-bfloat16"
        assert "attention_passed_over" not in RecipeMask(STAR, 128).kernels(ops)
    assert cuda.masked_ops("auto", "auto").name == "flex"
    assert cuda.masked_ops("flash", "bf16").name == "flash"  # whose masks are sdpa's
    assert cuda.ops("auto", "bf16").name == "flash"
    with pytest.raises(Unsupported, match="flex computes attention with a mask only: give --att"):
        cuda.ops("flex", "bf16")


def test_where_flex_fails_sdpa_masks_and_the_record_says_why(machine: Any) -> None:
    machine(traces=COMPILES, kernels={("masked flex", torch.bfloat16): "its gradient differs"})
    ops = Cuda(0).masked_ops("auto", "bf16")
    kernels = RecipeMask(STAR, 128).kernels(ops)
    assert kernels["attention"] == "masked-fused-sdpa-per-sequence"
    assert kernels["attention_passed_over"] == (
        "flex: its gradient differs; flash-varlen: computes no masks"
    )
    assert Cuda(0).masked_ops("auto", "fp16").name == "flex"
    with pytest.raises(Unsupported, match="by flex-kept-blocks in bf16: its gradient differs"):
        Cuda(0).masked_ops("flex", "bf16")
    both = {(f"masked {name}", torch.bfloat16): "RuntimeError: no" for name in ("flex", "flash")}
    machine(traces=COMPILES, kernels=both)
    with pytest.raises(Unsupported, match="by fused-sdpa-per-sequence in bf16: RuntimeError: no"):
        Cuda(0).masked_ops("auto", "bf16")


def test_without_a_compiler_there_is_no_flex(machine: Any) -> None:
    machine()
    cuda = Cuda(0)
    assert "flex" not in cuda.capabilities.kernels
    why = "inductor, which compiles it: package triton, for which it generates code, is not"
    assert cuda.capabilities.notes["flex"].startswith(why)
    passed_over = cuda.masked_ops("auto", "bf16").kernels["attention_passed_over"]
    assert passed_over.startswith(f"flex: {why}")
    for refused in (cuda.masked_ops, cuda.ops):
        with pytest.raises(Unsupported, match=f"'flex' unavailable: {why}"):
            refused("flex", "bf16")


def test_sdpa_does_not_take_the_kernel_that_plans_each_length(machine: Any) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    machine()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        Cuda(0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_transformer_engine_has_the_stream_too(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(traces=("transformer_engine",))
    monkeypatch.setattr(packages, "load", lambda *_: None)
    assert Cuda(0).ops("transformer_engine", "bf16").kernels["norm"] == "torch-bfloat16"


def test_auto_is_the_16_bit_mode_whatever_the_order(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    cuda = Cuda(0)
    assert cuda.resolve_precision("auto") == "bf16"
    for order, best in ((("fp32", "fp16"), "fp16"), (("fp32",), "fp32")):
        have = dataclasses.replace(cuda.capabilities, precisions=order)
        monkeypatch.setitem(cuda.__dict__, "capabilities", have)
        assert cuda.resolve_precision("auto") == best


def test_kernels_are_tried_only_in_types_that_the_device_has(machine: Any) -> None:
    machine(capability=(7, 0), builds=[])
    cuda = Cuda(0)
    assert set(cuda.attention_problems) == {"fp16", "fp32"}
    with pytest.raises(Unsupported, match="no 'bf16' here"):
        cuda.ops("auto", "bf16")


def test_trying_kernels_leaves_the_random_state_alone(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine()
    restored = []
    made.set_rng_state = restored.append
    monkeypatch.setattr(selfcheck, "attention_why_not", lambda *_: (torch.rand(3), None)[1])
    before = torch.get_rng_state()
    assert Cuda(0).attention_problems
    assert torch.equal(torch.get_rng_state(), before)
    assert len(restored) == 1


def test_auto_has_tritons_kernels_to_choose_and_takes_its_lamb_once_chosen(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    assert Cuda(0).measures and Cuda(0).fused_kernels == ()
    machine(traces=("triton",))
    cuda = Cuda(0)
    assert cuda.fused_kernels == ("triton",)
    assert cuda.lamb_kernel("auto") is cuda.lamb_kernel("torch") is None
    kernel = SimpleNamespace(triton_lamb=object())
    monkeypatch.setitem(sys.modules, "bertbench.backends.triton.lamb", kernel)
    monkeypatch.setattr(packages, "lamb_why_not", lambda *_: None)
    cuda.auto_lamb = "triton"
    assert cuda.lamb_kernel("auto") is kernel.triton_lamb


def test_packages_are_offered_when_installed_and_named_when_not(machine: Any) -> None:
    machine()
    cuda = Cuda(0)
    for package in ("apex", "transformer_engine"):
        assert package not in cuda.capabilities.kernels
        with pytest.raises(Unsupported, match=f"{package!r} unavailable: not installed"):
            cuda.ops(package, "bf16")
    assert "on the package index is another project" in cuda.capabilities.notes["apex"]
    machine(traces=("apex",))
    assert Cuda(0).capabilities.notes["apex"].startswith("installed without its CUDA extensions")
    machine(traces=("apex", "amp_C", "transformer_engine"))
    cuda = Cuda(0)
    assert cuda.capabilities.kernels == (
        "flash", "efficient", "sdpa", "plain", "apex", "transformer_engine",
    )  # fmt: skip
    assert cuda.ops("auto", "bf16").kernels["attention"] == "flash-varlen"
    assert cuda.ops("apex", "bf16").kernels["attention"] == "flash-varlen"


def test_apex_is_a_lamb_kernel_only_when_asked_for(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(traces=("amp_C",))
    extension = SimpleNamespace(multi_tensor_lamb=lambda *_: None)
    monkeypatch.setattr(
        packages.importlib, "import_module", lambda name: {"amp_C": extension}[name]
    )
    answers: list[str | None] = [None, "its update differs"]
    monkeypatch.setattr(packages, "lamb_why_not", lambda kernel, device: answers.pop(0))
    assert isinstance(Cuda(0).lamb_kernel("apex"), packages.ApexLamb)
    with pytest.raises(Unsupported, match="--kernels apex: its update differs"):
        Cuda(0).lamb_kernel("apex")
    assert Cuda(0).lamb_kernel("auto") is None


# -- the rest of the capabilities and the record ---------------------------------------------
def test_capabilities_of_a_whole_machine(machine: Any) -> None:
    machine(traces=("triton", "gcc"))
    found = Cuda(0).capabilities
    assert found.collective == "nccl"
    assert found.device_timer and found.memory_stats and found.memory_limit
    assert found.pinned_memory and found.graphs
    assert found.compilers == ("inductor",)
    assert "each batch has another number of tokens" in found.notes["cudagraphs"]
    assert found.telemetry == ("nvml (energy)",)
    assert "power" not in found.notes
    assert Cuda(0).timer().clock == "device-event"
    assert Cuda(0).peak_memory().peak_memory_bytes == 123  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, None),
        ({"traces": ()}, "it needs triton: package triton is not installed"),
        ({"capability": (8, 6)}, "needs compute capability 8.9, this is 8.6"),
        ({"scaled": "RuntimeError: no such product"}, "RuntimeError: no such product"),
    ],
)
def test_fp8_needs_triton_a_device_and_torchs_product(
    machine: Any, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], why: str | None
) -> None:
    machine(**{"traces": ("triton", "gcc"), **facts})
    cuda, asked = Cuda(0), []
    assert cuda.capabilities.notes.get("fp8") == why
    assert (cuda.capabilities.precisions[-1] == "fp8") == (why is None)
    assert cuda.resolve_precision("auto") == cuda.resolve_precision("amp") == "bf16"
    if why is not None:
        with pytest.raises(Unsupported, match="no 'fp8' here"):
            cuda.ops("auto", "fp8")
        return
    monkeypatch.setattr(Cuda, "fused_ops", lambda self, *given: asked.append(given[:2]))
    for kernels in ("auto", "triton"):
        cuda.ops(kernels, "fp8")
    assert asked == [("triton", "fp8")] * 2
    own = cuda.linear_of("bf16")
    assert own is torch.nn.functional.linear
    for kernels in ("flash", "plain"):
        with pytest.raises(Unsupported, match=f"--kernels {kernels} has no fp8 .*: choose triton"):
            cuda.ops(kernels, "fp8")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"traces": ("gcc",)}, "package triton"),
        ({"traces": ("triton",)}, "C compiler"),
        (
            {"traces": ("triton", "gcc"), "capability": (6, 1), "builds": []},
            "needs compute capability 7.0",
        ),
    ],
)
def test_inductor_needs_triton_a_compiler_and_a_device(
    machine: Any, facts: dict[str, Any], reason: str
) -> None:
    machine(**facts)
    found = Cuda(0).capabilities
    assert found.compilers == ()
    assert reason in found.notes["inductor"]


def test_a_missing_power_sensor_is_a_note(machine: Any) -> None:
    machine(sensors=Unsupported("no NVML: the NVIDIA driver is not loaded"))
    cuda = Cuda(0)
    assert cuda.telemetry() is None
    assert cuda.capabilities.telemetry == ()
    assert cuda.capabilities.notes["power"] == "no NVML: the NVIDIA driver is not loaded"
    machine(
        sensors=(Sensors(lambda: {"temperature_c": 40.0}, "nvml (no power)"), "MIG: whole card")
    )
    cuda = Cuda(0)
    assert cuda.telemetry().source == "nvml (no power)"  # type: ignore[union-attr]
    assert cuda.capabilities.notes["power"] == "MIG: whole card"


def test_the_record_has_no_id_of_the_machine(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-11112222-aaaa,3")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    joined = "NVLink to 1 of 1 GPUs, 18 links"
    monkeypatch.setattr(nvml, "interconnect", lambda *_: joined)
    told = Cuda(0).describe()
    assert (told.backend, told.name, told.index) == ("cuda", "NVIDIA H100 80GB HBM3", 0)
    assert told.memory_bytes == 80 << 30
    assert told.driver == "580.65.06"
    assert told.runtime == "torch 2.13.0+cu130, CUDA 13.0"
    assert not told.simulated
    assert dict(told.extras) == {
        "compute_capability": "9.0",
        "multiprocessors": "132",
        "cudnn": "91900",
        "nccl": "2.27.5",
        "interconnect": joined,
        "NVIDIA_TF32_OVERRIDE": "0",
        "CUDA_VISIBLE_DEVICES": "GPU-...,3",
    }
    assert Cuda.verified == "documents"


def test_torch_has_its_fused_adamw_on_this_device() -> None:
    """What common/optim/factory.py asks for; where there is none, torch refuses the first step."""
    from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

    assert Cuda.device_type in _get_fused_kernels_supported_devices()
    optimizers = []
    for device in ("cpu", "meta"):
        parameter = torch.nn.Parameter(torch.ones(2, device=device))
        parameter.grad = torch.ones_like(parameter)
        optimizers.append(build_optimizer("adamw", [{"params": [parameter]}], lr=0.1))
    assert optimizers[0].defaults["fused"] is True
    optimizers[0].step()
    with pytest.raises(RuntimeError, match="`fused=True` requires"):
        optimizers[1].step()
