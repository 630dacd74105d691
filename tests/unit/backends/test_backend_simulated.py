# SPDX-License-Identifier: Apache-2.0
"""The simulated accelerator, in processes of its own: torch takes such a device only once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertbench.backends.simulated import build
from bertbench.common.errors import Unsupported

ROOT = Path(__file__).parents[3]
STANDINS = ROOT / "backends/simulated/standins"
HAS_COMPILER = bool(os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++"))
needs_compiler = pytest.mark.skipif(
    not HAS_COMPILER, reason="the simulated accelerator is built with a C++ compiler; none is here"
)

INSTALL = """
import json, time, warnings
import torch, torch.nn.functional as F
from torch import nn
from bertbench.backends.simulated.device import install
demo = install("demo")
def answer(**facts): print("ANSWER " + json.dumps(facts))
"""


def start(
    code: str, variables: dict[str, str] | None = None, path: tuple[Path, ...] = ()
) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BERTBENCH_SIM", "ENFLAME"))}
    fixed = {
        "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=kept | fixed | (variables or {}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the code gave to ``answer``."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.rpartition("ANSWER ")[2])


def run(code: str, **variables: str) -> dict[str, Any]:
    return finish(start(INSTALL + code, variables))


Cached = Callable[[str], dict[str, Any]]

TRAIN = """
def train(device, steps=10):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(50, 32), nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True),
        nn.LayerNorm(32), nn.Linear(32, 50),
    )
    ids = torch.randint(50, (steps, 4, 12))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        x = ids[step].to(device)
        loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten().roll(1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
"""


@needs_compiler
def test_ten_training_steps_equal_the_cpu() -> None:
    """Also on a device other than the first."""
    got = run(TRAIN + "answer(cpu=train('cpu'), first=train('demo'), second=train('demo:1'))")
    assert len(set(got["cpu"])) == 10
    assert got["first"] == pytest.approx(got["cpu"], rel=1e-5)
    assert got["second"] == got["first"]


@needs_compiler
def test_tensors_views_memory_and_counts() -> None:
    got = run("""
x = torch.zeros(4, 6, device="demo")
view = x[1:3].t()
view.add_(1)
x.view(-1)[0] = 5
out = torch.empty(0, device="demo")
torch.mul(x, 2, out=out)
grown = torch.tensor([1.0, 2.0], device="demo").resize_(3)[:2].tolist()
out.untyped_storage().resize_(0)
out.untyped_storage().resize_(96)
out.copy_(2 * x)
before, base = demo.counters(), demo.memory_allocated()
demo.reset_peak_memory_stats()
big = torch.empty(1 << 20, device="demo")
bigger = big + 1
del big, bigger
after = demo.counters()
mixed = {}
for name, wrong in {
    "host": lambda: x + torch.ones(4, 6), "device": lambda: x + torch.ones(4, 6, device="demo:1"),
    "written": lambda: torch.ones(4, 6).add_(x), "numpy": lambda: x.numpy(),
}.items():
    try: mixed[name] = repr(wrong())
    except (RuntimeError, TypeError) as error: mixed[name] = type(error).__name__
read = demo.counters()
out.sum().item()
pinned = torch.ones(3).pin_memory().to("demo", non_blocking=True)
now = demo.counters()
answer(
    resized=grown, x=x.tolist(), out=(out.cpu() == 2 * x.cpu()).all().item(), mixed=mixed,
    grown=demo.max_memory_allocated() - base, left=demo.memory_allocated() - base - 12,
    other=demo.memory_allocated(1), allocations=after["allocations"] - before["allocations"],
    launches=after["launches"] - before["launches"],
    reads=now["device_to_host"] - read["device_to_host"],
    sent=now["host_to_device"] - read["host_to_device"],
    pinned=str(pinned.device),
)
""")
    ones = [0.0, 1.0, 1.0, 0.0]
    want = [[value] * 6 for value in ones]
    want[0][0] = 5.0
    assert got["x"] == want
    assert got["out"]
    assert got["resized"] == [1.0, 2.0]
    assert got["mixed"] == {
        "host": "RuntimeError", "device": "RuntimeError", "written": "RuntimeError",
        "numpy": "TypeError",
    }  # fmt: skip
    assert (got["grown"], got["left"], got["other"]) == (2 << 22, 0, 0)
    assert (got["allocations"], got["launches"]) == (2, 1)
    assert (got["reads"], got["sent"], got["pinned"]) == (1, 1, "demo:0")


@needs_compiler
def test_the_host_cannot_follow_a_pointer_of_the_device() -> None:
    code = "import ctypes; x = torch.ones(4, device='demo'); answer(sum=x.sum().item())"
    assert finish(start(INSTALL + code)) == {"sum": 4.0}
    caught = start(INSTALL + code + "; ctypes.string_at(x.data_ptr(), 4)")
    caught.communicate(timeout=300)
    assert caught.returncode < 0


@needs_compiler
def test_out_of_memory() -> None:
    """By size, and after a number of allocations."""
    code = """
held, error = [], None
try:
    for _ in range(50): held.append(torch.ones(1000, device="demo"))
except torch.OutOfMemoryError as caught:
    error = str(caught)
used = demo.memory_allocated()
del held
answer(error=error, used=used, free=demo.mem_get_info()[0], oom=demo.OutOfMemoryError.__name__)
"""
    got = run(code, BERTBENCH_SIMULATED_MEMORY_BYTES="10000")
    assert "tried to allocate 4000 bytes; 8000 of 10000" in got["error"]
    assert (got["used"], got["free"]) == (8000, 10000)
    late = run(code, BERTBENCH_SIMULATED_OOM_AFTER="5", BERTBENCH_SIMULATED_DEVICE_COUNT="1")
    assert late["used"] == 20000
    assert late["error"]


@needs_compiler
def test_work_is_done_only_when_synchronised() -> None:
    """A clock that does not wait misses what the events and a waiting clock see.

    Nothing is measured: the modelled duration of the kernels is chosen to dwarf the host's.
    """
    got = run(
        """
x = torch.ones(4, device="demo")
demo.synchronize()
begin, end = (demo.Event(enable_timing=True) for _ in range(2))
begin.record()
t0 = time.perf_counter()
for _ in range(5): x.add_(1)
end.record()
unsynchronised = time.perf_counter() - t0
early = None
try: begin.elapsed_time(end)
except RuntimeError as error: early = str(error)
pending = end.query()
before = demo.counters()["synchronize"]
demo.synchronize()
waited = time.perf_counter() - t0
calls = demo.counters()["synchronize"] - before
t1 = time.perf_counter()
for _ in range(2): x.add_(1)
x[0].item()
copied = time.perf_counter() - t1
answer(unsynchronised=unsynchronised, waited=waited, copied=copied, early=early, pending=pending,
       done=end.query(), events=begin.elapsed_time(end) / 1e3, calls=calls)
""",
        BERTBENCH_SIMULATED_LATENCY_US="400000",
    )
    assert got["unsynchronised"] < 1.9 < 2.0 <= got["events"]
    assert got["waited"] >= 2.0
    assert got["copied"] >= 0.8
    assert "Both events must be completed" in got["early"]
    assert (got["pending"], got["done"], got["calls"]) == (False, True, 1)


@needs_compiler
def test_designated_operators_fall_back_and_no_others() -> None:
    got = run(
        """
x = torch.randn(8, 8, device="demo", requires_grad=True)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    y = F.gelu(F.layer_norm(F.linear(x, x), (8,)))
    F.dropout(y, 0.5).tanh().sum().backward()
    x.cpu()
found = {}
for event in profile.events():
    if event.name == "aten::_to_cpu":
        parent = event.cpu_parent
        found[parent.name] = found.get(parent.name, 0) + 1
answer(profiler=found, counted=demo.counters()["fallbacks"],
       same=torch.equal(y.cpu(), F.gelu(F.layer_norm(F.linear(x.cpu(), x.cpu()), (8,)))))
""",
        BERTBENCH_SIMULATED_FALLBACK="aten::gelu,aten::tanh",
    )
    assert set(got["profiler"]) == {"aten::gelu", "aten::tanh"}
    assert got["counted"] == {"aten::gelu": 1, "aten::tanh": 1}
    assert got["same"]


PRECISION = """
from bertbench.backends.selfcheck import examine
device = torch.device("demo", 0)
x = torch.ones(4, 4, device=device)
found = {"fp32": examine(device)["product_mantissa_bits"]}
demo.allow_tf32 = True
found["tf32"] = examine(device)["product_mantissa_bits"]
demo.allow_tf32 = False
for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autocast("demo", dtype=dtype):
            y = F.linear(x, x)
            found[name] = [str(y.dtype), str(F.layer_norm(y, (4,)).dtype), len(caught)]
torch.manual_seed(3)
state = demo.get_rng_state()
a, b = torch.rand(4, device=device), F.dropout(x, 0.5)
host = torch.rand(1).item()
demo.set_rng_state(state)
again = torch.equal(a.cpu(), torch.rand(4, device=device).cpu())
again &= torch.equal(b.cpu(), F.dropout(x, 0.5).cpu())
torch.manual_seed(3)
own = torch.Generator("demo").manual_seed(7)
c = torch.rand(4, device=device, generator=own)
d = torch.rand(4, device=device, generator=own.manual_seed(7))
scaler = torch.amp.GradScaler("demo", init_scale=1024.0)
w = torch.ones(3, device=device, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=1.0)
scales = []
for factor in (float("inf"), 1.0):
    optimizer.zero_grad()
    scaler.scale((w * factor).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    scales.append([scaler.get_scale(), w.tolist()])
answer(found=found, again=again, host=host == torch.rand(1).item(),
       own=torch.equal(c.cpu(), d.cpu()), differs=not torch.equal(a.cpu(), c.cpu()), scales=scales,
       bf16=demo.is_bf16_supported())
"""


@needs_compiler
def test_precision_randomness_and_scaling() -> None:
    got = run(PRECISION)
    assert got["found"] == {
        "fp32": "23", "tf32": "10",
        "bf16": ["torch.bfloat16", "torch.float32", 0],
        "fp16": ["torch.float16", "torch.float32", 0],
    }  # fmt: skip
    assert got["again"], "the generator's state did not come back"
    assert got["host"], "the device drew from the host's generator"
    assert got["own"]
    assert got["differs"]
    assert got["scales"] == [[512.0, [1.0] * 3], [512.0, [0.0] * 3]]
    assert got["bf16"]


@needs_compiler
def test_a_device_that_lacks_a_precision() -> None:
    got = run(PRECISION, BERTBENCH_SIMULATED_LACKS="bf16")
    assert got["found"]["bf16"] == ["torch.float32", "torch.float32", 1]
    assert got["found"]["fp16"][0] == "torch.float16"
    assert not got["bf16"]


HALVES = """
torch.manual_seed(1)
a, b, c = torch.randn(7, 3000), torch.randn(3000, 5), torch.randn(5)
halves = [x.half() for x in (a, b, c)]
there = [x.to("demo") for x in halves]
a, b, c = (x.float() for x in halves)
bias = nn.Linear(3000, 5, dtype=torch.half, device="demo")
with torch.no_grad():
    bias.weight.copy_(there[1].t()), bias.bias.copy_(there[2])
out = torch.empty(7, 5, dtype=torch.half, device="demo")
torch.mm(there[0], there[1], out=out)
pairs = {
    "mm": (there[0] @ there[1], a @ b),
    "transposed": (there[1].t() @ there[0].t(), b.t() @ a.t()),
    "bmm": (there[0][None] @ there[1][None], (a @ b)[None]),
    "linear": (bias(there[0]).detach(), torch.addmm(c, a, b.t().contiguous().t())),
}
answer(
    same={k: bool(torch.equal(x.cpu(), y.half())) for k, (x, y) in pairs.items()},
    out=bool(torch.allclose(out.cpu().float(), a @ b, atol=0.5)),
    types=sorted({str(x.dtype) + str(x.device) for x, _ in pairs.values()}),
)
"""


@needs_compiler
def test_half_products_add_up_in_float32() -> None:
    got = run(HALVES)
    assert got["same"] == dict.fromkeys(got["same"], True)
    assert got["out"]
    assert got["types"] == ["torch.float16demo:0"]


RANK = (
    TRAIN
    + """
import os, sys
import torch.distributed as dist
from bertbench.backends.simulated import collective
rank, group, where = int(os.environ["RANK"]), os.environ["GROUP"], os.environ["WHERE"]
collective.register("sccl", "demo")
device = torch.device(where, rank) if where == "demo" else torch.device("cpu")
if where == "demo": demo.set_device(rank)
dist.init_process_group(group, init_method="file://" + os.environ["STORE"], rank=rank, world_size=2)
a = torch.full((3,), rank + 1.0, device=device)
dist.all_reduce(a)
work = dist.all_reduce(a, async_op=True)
work.wait()
b = torch.full((2,), rank, device=device)
dist.broadcast(b, 1)
votes = torch.tensor([rank])
dist.all_reduce(votes, op=dist.ReduceOp.MAX)
objects = [None, None]
dist.all_gather_object(objects, {"rank": rank})
parts = [torch.zeros(1, device=device) for _ in range(2)]
dist.all_gather(parts, torch.full((1,), rank + 0.5, device=device))
dist.barrier()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).to(device)
model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
losses = []
for step in range(4):
    torch.manual_seed(10 * step + rank)
    x, y = torch.randn(6, 8).to(device), torch.randint(4, (6,)).to(device)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
answer(losses=losses, a=a.tolist(), b=b.tolist(), votes=votes.tolist(), objects=objects,
       parts=[p.item() for p in parts], calls=collective.calls["allreduce"])
dist.destroy_process_group()
"""
)


@needs_compiler
def test_two_ranks_equal_gloo_on_the_cpu(tmp_path: Path) -> None:
    def ranks(group: str, where: str) -> list[dict[str, Any]]:
        store = tmp_path / f"{where}-{group.replace(':', '-')}"
        processes = [
            start(
                INSTALL + RANK,
                {"RANK": str(rank), "GROUP": group, "WHERE": where, "STORE": str(store)},
            )
            for rank in range(2)
        ]
        return [finish(process) for process in processes]

    host = ranks("gloo", "cpu")
    device = ranks("cpu:gloo,demo:sccl", "demo")
    for ours, theirs in zip(device, host, strict=True):
        assert ours.pop("calls") >= 2
        assert theirs.pop("calls") == 0
        assert ours.pop("losses") == pytest.approx(theirs.pop("losses"), rel=1e-6)
        assert ours == theirs
    assert host[0]["a"] == [6.0] * 3
    assert host[0]["b"] == [1, 1]


TORCH_GCU = """
import json, torch, torch_gcu, pyefml
from bertbench.backends.selfcheck import examine
pyefml.efmlInitV2()
handle = pyefml.efmlDeviceGetHandleByIndex(1)
idle = pyefml.efmlDeviceGetPowerUsage(handle)
x = torch.ones(1 << 10, device="gcu")
print("ANSWER " + json.dumps(dict(
    simulated=torch_gcu.SIMULATED, count=torch.gcu.device_count(), idle=idle,
    found=examine(torch.device("gcu")), machine=pyefml.efmlDeviceGetCount(),
    used=pyefml.efmlDeviceGetMemoryInfo(handle).used, level=pyefml.efmlDeviceGetDpmLevel(handle),
    collective=torch.distributed.get_default_backend_for_device("gcu"),
    named=[hasattr(torch.gcu, name) for name in ("amp", "OutOfMemoryError", "memory_stats")],
)))
"""


@needs_compiler
def test_torch_gcu_by_name_behaves_as_documented() -> None:
    """Defaults of the real one, each undone by its own variable."""
    got = finish(start(TORCH_GCU, {"TOPS_VISIBLE_DEVICES": "1"}, (STANDINS,)))
    assert got["simulated"]
    assert got["collective"] == "eccl"
    assert all(got["named"])
    assert (got["count"], got["machine"], got["used"]) == (1, 2, 4096)
    assert (got["idle"], got["level"]) == (60_000, 2)
    narrow = {"product_dtype": "float32", "product_mantissa_bits": "23", "gelu": "tanh"}
    assert got["found"] == narrow | {"int64": "narrowed to 32 bits"}
    wide = finish(
        start(
            TORCH_GCU,
            {
                "ENFLAME_ENABLE_TF32": "true",
                "ENFLAME_PT_GELU_ERF_ENABLE": "true",
                "TORCH_GCU_ENABLE_INT64_AND_UINT64": "true",
                "BERTBENCH_SIMULATED_THROTTLE": "1",
            },
            (STANDINS,),
        )
    )
    assert wide["found"] == {
        "product_dtype": "float32", "product_mantissa_bits": "10", "gelu": "erf", "int64": "kept",
    }  # fmt: skip
    assert (wide["level"], wide["count"]) == (1, 2)


@needs_compiler
def test_telemetry_can_be_lost_and_a_real_package_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "torch_gcu").mkdir()
    code = """
import json, torch_gcu, pyefml
try: pyefml.efmlInit()
except pyefml.EFMLError as error: print("ANSWER " + json.dumps([error.value, str(error)]))
"""
    lost = start(code, {"BERTBENCH_SIMULATED_NO_TELEMETRY": "1"}, (STANDINS,))
    beside = start(code, {}, (STANDINS, tmp_path))
    value, text = finish(lost)
    assert value == 6
    assert "no telemetry" in text
    _, errors = beside.communicate(timeout=300)
    assert beside.returncode != 0
    assert "torch_gcu is installed" in errors


@pytest.mark.parametrize(
    ("compiler", "fix"), [("no-such-compiler", "install g"), ("false", "set CXX")]
)
def test_without_a_working_compiler_the_fix_is_named(
    compiler: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path))
    build.library.cache_clear()
    with pytest.raises(Unsupported, match=fix):
        build.library()
    assert not list((tmp_path / "native").glob("*")) if (tmp_path / "native").exists() else True


@needs_compiler
@pytest.mark.parametrize(
    ("knob", "value"),
    [("INT64", "wide"), ("LACKS", "fp64"), ("MEMORY_BYTES", "much"), ("GELU", "relu")],
)
def test_a_wrong_knob_is_refused(knob: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bertbench.backends.simulated.device import _settings
    from bertbench.common.errors import BadInput

    monkeypatch.setenv(f"BERTBENCH_SIMULATED_{knob}", value)
    with pytest.raises(BadInput, match=value):
        _settings({})
