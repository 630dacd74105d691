# SPDX-License-Identifier: Apache-2.0
"""tools/trace_step.py: counts that are known by hand, and a traced step of a small model.

Tracing needs a process that loads torch in a particular way, so this file is also the program that
runs there: it prints the counts of all cases as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "trace_step.py"
sys.path.append(str(TOOL.parent))

from tracing.launches import CHUNK, LIMITS, multi_tensor  # noqa: E402

from bertbench.benchmarks import resolve  # noqa: E402

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
needs_tracing = pytest.mark.skipif(
    sys.platform != "linux" or not COMPILER, reason="tracing needs Linux and a C++ compiler"
)
SMALL = ("mini", "--num_hidden_layers", "2", "--micro_batch", "4", "--kernels", "flash")


# -- the program ----------------------------------------------------------------------------------
def program() -> None:
    """Run every case in this process and print what it counted."""
    from tracing import process

    process.start()
    found = {"operations": operations()}
    for name, flags in (("bf16", ()), ("fp16", ("--precision", "fp16"))):
        found[name] = traced(flags)
    from unittest import mock

    import bertbench.common.training.step

    real = bertbench.common.training.step.grad_norm

    def waiting_norm(params: Any) -> Any:
        norm = real(params)
        float(norm)  # the line that must be found
        return norm

    with mock.patch.object(bertbench.common.training.step, "grad_norm", waiting_norm):
        found["waiting"] = traced(())
    print(json.dumps(found))


def traced(flags: tuple[str, ...]) -> dict[str, Any]:
    """A summary with rates of 1, so that seconds are bytes or FLOPs."""
    from tracing.report import summary
    from tracing.run import trace
    from tracing.tally import Rates

    rates = Rates(
        bandwidth=1,
        products=1,
        eight_bit_products=1,
        attention_forward=1,
        attention_backward=1,
        launch_s=1,
    )
    return summary(trace(SMALL[0], [*SMALL[1:], *flags], ROOT, rates), rates, [1, 2, 5], 4)


def operations() -> dict[str, Any]:
    """Launches, bytes and synchronisations of each small case."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from tracing.tally import Rates, Tally

    rates = Rates(
        bandwidth=1,
        products=1,
        eight_bit_products=1,
        attention_forward=1,
        attention_backward=1,
        launch_s=1,
    )
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name, (given, run) in cases(torch).items():
            inputs = given()
            with Tally(ROOT, rates) as tally:
                tally.phase = "case"
                run(*inputs)
            found[name] = {
                "launches": sum(cost.launches for cost in tally.costs.values()),
                "bytes": sum(cost.bytes for cost in tally.costs.values()),
                "waits": [f"{what} @ {where}" for (_, what, where) in tally.waits.elements()],
            }
    return found


def cases(torch: Any) -> dict[str, tuple[Callable[[], Any], Callable[..., Any]]]:
    """Name -> inputs, and what is done with them."""

    def on(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def ids(count: int) -> Any:
        return on(count, dtype=torch.int64)

    def host(*shape: int) -> Any:
        return torch.empty(shape)

    half = torch.bfloat16
    return {
        "cast": (lambda: [on(8, 16, dtype=half)], lambda x: x.float()),
        "twice": (lambda: [on(8, 16)], lambda x: x + x),
        "in_place": (lambda: [on(8, 16), on(8, 16)], lambda x, y: x.add_(y)),
        "overwrite": (lambda: [on(8, 16), on(8, 16)], lambda x, y: x.copy_(y)),
        "expanded": (lambda: [on(8, 1).expand(8, 16), on(8, 16)], lambda x, y: x + y),
        "views": (lambda: [on(8, 16)], lambda x: x.view(128)[3:].unsqueeze(0).t().detach()),
        "allocation": (lambda: [on(8, 16)], torch.empty_like),
        "zeros_like": (lambda: [on(8, 16)], torch.zeros_like),
        "host": (lambda: [host(8, 16)], lambda x: x + 1),
        "embedding": (lambda: [ids(5), on(1000, 16)], torch.nn.functional.embedding),
        "embedding_small": (lambda: [ids(50), on(2, 16)], torch.nn.functional.embedding),
        "embedding_backward": (
            lambda: [on(5, 16), ids(5)],
            lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, 1000, -1, False),
        ),
        "rows": (lambda: [on(1000, 16), ids(5)], lambda x, i: x.index_select(0, i)),
        "put": (lambda: [on(99, 16), ids(5), on(5, 16)], lambda x, i, v: x.index_put_((i,), v)),
        "add_rows": (
            lambda: [on(99, 16), ids(5), on(5, 16)],
            lambda x, i, v: x.index_add_(0, i, v),
        ),
        "product": (lambda: [on(8, 16), on(16, 4)], lambda x, y: x @ y),
        "cat": (lambda: [[on(4) for _ in range(130)]], torch.cat),
        "foreach": (lambda: [[on(4) for _ in range(300)]], lambda x: torch._foreach_mul_(x, 2.0)),
        "foreach_lists": (
            lambda: [[on(4) for _ in range(65)], [on(4) for _ in range(65)]],
            torch._foreach_add_,
        ),
        "foreach_new": (lambda: [[on(4) for _ in range(65)]], torch._foreach_sqrt),
        "foreach_shapes": (
            lambda: [[on(4) for _ in range(65)], [on() for _ in range(65)]],
            torch._foreach_mul_,
        ),
        "foreach_norm": (lambda: [[on(4) for _ in range(401)]], torch._foreach_norm),
        "fused_adamw": (
            lambda: [[[on(4)] * 37 for _ in range(4)] + [[], [on()] * 37]],
            lambda lists: torch._fused_adamw_(
                *lists, lr=0.1, beta1=0.9, beta2=0.9, weight_decay=0.0, eps=1e-6, amsgrad=False,
                maximize=False,
            ),
        ),
        "item": (lambda: [on()], lambda x: x.item()),
        "item_of_host": (lambda: [torch.tensor(3.0)], lambda x: x.item()),
        "condition": (lambda: [on()], lambda x: bool(x > 0)),
        "nonzero": (lambda: [on(8)], torch.nonzero),
        "mask": (lambda: [on(8, 16), on(8, dtype=torch.bool)], lambda x, m: x[m]),
        "put_mask": (
            lambda: [on(8, 16), on(8, dtype=torch.bool), on(8, 16)],
            lambda x, m, v: x.index_put_((m,), v),
        ),
        "to_device": (lambda: [host(8, 16)], lambda x: x.to("cuda")),
        "to_device_async": (lambda: [host(8)], lambda x: x.to("cuda", non_blocking=True)),
        "to_host": (lambda: [on(8)], lambda x: x.cpu()),
    }  # fmt: skip


# -- the tests ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the program printed."""
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TOOL.parent}", **more}


# 8 x 16 float32 are 512 bytes, a row of 16 is 64, an int64 is 8.
BYTES = {
    "cast": 256 + 512,
    "twice": 512 + 512,
    "in_place": 2 * 512 + 512,
    "overwrite": 512 + 512,
    "expanded": 32 + 512 + 512,
    "views": 0,
    "allocation": 0,
    "zeros_like": 512,
    "host": 0,
    "embedding": 5 * 64 + 5 * 8 + 5 * 64,
    "embedding_small": 2 * 64 + 50 * 8 + 50 * 64,
    "embedding_backward": 5 * 64 + 5 * 8 + 1000 * 64 + 2 * 5 * 64,
    "rows": 5 * 64 + 5 * 8 + 5 * 64,
    "put": 5 * 64 + 5 * 8 + 5 * 64,
    "add_rows": 5 * 64 + 5 * 8 + 2 * 5 * 64,
    "product": 512 + 256 + 128,
    "foreach": 300 * 2 * 16,
    "foreach_lists": 65 * 3 * 16,
    "foreach_new": 65 * 2 * 16,
    "foreach_shapes": 65 * (2 * 16 + 4),
    "foreach_norm": 401 * (16 + 4),
}
LAUNCHES = {
    "cast": 1,
    "views": 0,
    "allocation": 0,
    "host": 0,
    "cat": 2,  # 128 + 2
    "foreach": 3,  # 110 + 110 + 80
    "foreach_lists": 2,  # 64 + 1
    "foreach_new": 2,
    "foreach_shapes": 65,
    "foreach_norm": 4 + 1 + 2,  # 110 a launch, zeros, 400 a launch
    "fused_adamw": 2,  # 36 + 1
}
WAITS = {
    "item": "_local_scalar_dense",
    "condition": "_local_scalar_dense",
    "nonzero": "nonzero",
    "mask": "index with a mask",
    "put_mask": "index_put_ with a mask",
    "to_device": "_to_copy between host and device",
    "to_host": "_to_copy between host and device",
}


@needs_tracing
@pytest.mark.parametrize("name", BYTES)
def test_bytes_known_by_hand(found: dict[str, Any], name: str) -> None:
    assert found["operations"][name]["bytes"] == BYTES[name]


@needs_tracing
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_known_by_hand(found: dict[str, Any], name: str) -> None:
    assert found["operations"][name]["launches"] == LAUNCHES[name]


@needs_tracing
def test_synchronisations_are_found_and_no_others(found: dict[str, Any]) -> None:
    own = str(Path(__file__).relative_to(ROOT))
    for name, case in found["operations"].items():
        if name not in WAITS:
            assert case["waits"] == [], name
            continue
        (only,) = case["waits"]
        what, where = only.split(" @ ")
        assert what == WAITS[name]
        assert where.startswith(f"{own}:"), where


def test_multi_tensor_launches_are_those_of_the_loop() -> None:
    """Against MultiTensorApply.cuh's loop over tensors and chunks, chunk by chunk."""

    def loop(numels: list[int], most: int, most_blocks: int) -> int:
        launches = tensors = blocks = 0
        for numel in numels:
            chunks = (numel + CHUNK - 1) // CHUNK
            tensors += chunks > 0
            for chunk in range(chunks):
                blocks += 1
                last = chunk == chunks - 1
                if blocks == most_blocks or (tensors == most and last):
                    launches, blocks, tensors = launches + 1, 0, 0 if last else 1
        return launches + (blocks > 0)

    # A tensor that goes on in the next launch takes one of its 110 places.
    assert multi_tensor([320 * CHUNK + 1] + [1] * 109, 1) == 2
    assert multi_tensor([320 * CHUNK + 1] + [1] * 110, 1) == 3
    rng = random.Random(0)
    for _ in range(300):
        depth, kb = rng.randint(1, 5), rng.choice([4, 32])
        limits = LIMITS[kb]
        large = rng.choice([1, 30, 700]) * CHUNK
        numels = [rng.randrange(large + 1) for _ in range(rng.randint(1, 250))]
        numels += [0, CHUNK, limits.blocks * CHUNK]
        wanted = loop(numels, limits.tensors[depth - 1], limits.blocks)
        assert multi_tensor(numels, depth, limits) == wanted
        wanted = loop(numels, limits.scalar_list_tensors[depth - 1], limits.blocks)
        assert multi_tensor(numels, depth, limits, scalar_list=True) == wanted


@needs_tracing
def test_products_are_the_model_flops(found: dict[str, Any]) -> None:
    """common/measure/flops.py: attention counts 1 + 2 there, and executes 1 + 2.5."""
    trace, layers, hidden = found["bf16"], 2, 256
    batch, phases = trace["micro_batch"], trace["phases"]
    attention = layers * 4 * hidden * batch["squared_lengths"]
    for later in ("", ", next"):
        forward, backward = phases["forward" + later], phases["backward" + later]
        products = [phase["matrix product"]["flops"] for phase in (forward, backward)]
        assert sum(products) == batch["model_flops"] - 3 * attention
        assert products[1] == 2 * products[0]
        assert forward["attention"]["flops"] == attention
        assert backward["attention"]["flops"] == 2.5 * attention
        assert [phase["attention"]["launches"] for phase in (forward, backward)] == [layers] * 2


@needs_tracing
def test_no_synchronisation_in_bf16(found: dict[str, Any]) -> None:
    assert found["bf16"]["precision"] == "bf16"
    assert found["bf16"]["synchronisations"] == []


@needs_tracing
def test_the_gradient_scaler_reads_three_numbers_a_step(found: dict[str, Any]) -> None:
    waits = found["fp16"]["synchronisations"]
    assert [one["count"] for one in waits] == [1, 1, 1]
    assert sorted(one["where"].split(":")[0] for one in waits) == [
        "backends/base.py", "common/training/step.py", "common/training/step.py",
    ]  # fmt: skip
    assert [step["synchronisations"] for step in found["fp16"]["steps"]] == [3, 3, 3]


@needs_tracing
def test_a_line_that_waits_is_named(found: dict[str, Any]) -> None:
    (only,) = found["waiting"]["synchronisations"]
    name, line = only["where"].split(":")
    assert (only["phase"], only["count"], name) == ("clip", 1, "tests/unit/test_trace_step.py")
    text = Path(__file__).read_text(encoding="utf-8").splitlines()[int(line) - 1]
    assert "float(norm)  # the line that must be found" in text


@needs_tracing
def test_phases_and_steps_add_up(found: dict[str, Any]) -> None:
    trace = found["bf16"]
    launches = {
        phase: sum(kind["launches"] for kind in kinds.values() if isinstance(kind, dict))
        for phase, kinds in trace["phases"].items()
    }
    parts = [one for one in trace["operations"] if one["phase"] == "backward, next"]
    (added,) = (one for one in parts if one["operation"] == "add_")
    # Accumulation: the gradient of each parameter is added to what is there; and the loss sums.
    assert launches["backward, next"] == launches["backward"] + added["launches"] + 1
    assert launches["forward, next"] == launches["forward"]
    assert launches["clip"] and launches["optimizer"]
    one, two, five = (step["launches"] for step in trace["steps"])
    assert two == sum(launches.values())
    assert two - one == launches["forward, next"] + launches["backward, next"]
    assert five - two == 3 * (two - one)
    assert [step["sequences"] for step in trace["steps"]] == [4, 8, 20]
    for step in trace["steps"]:
        assert step["host_seconds"] == step["launches"] * trace["rates"]["launch_s"]
        slower = max(step["seconds"], step["host_seconds"])
        assert step["sequences_per_second"] == step["sequences"] / slower


@needs_tracing
def test_lamb_moves_what_its_formula_says(found: dict[str, Any]) -> None:
    """Float32 passes over parameters, counted by hand from common/optim/lamb.py and clip.py."""
    c = resolve(SMALL[0], SMALL[1:]).recipe.model  # type: ignore[attr-defined]
    hidden, inner = c.hidden_size, c.intermediate_size
    parameters = (c.vocab_size + c.max_position_embeddings + 2 + 2) * hidden
    layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
    parameters += c.num_hidden_layers * layer
    parameters += hidden * hidden + 3 * hidden + c.vocab_size  # transform, norm, decoder's bias
    parameters += hidden * hidden + hidden + 2 * hidden + 2  # pooler, next sentence
    moved = {(o["phase"], o["operation"]): o["bytes"] for o in found["bf16"]["operations"]}
    assert moved["optimizer", "_foreach_lerp_"] == 3 * 4 * parameters
    assert ("clip", "_foreach_mul_") not in moved  # a factor of the update
    # The gradients by it, the second moments, updates and (matrices only) trust ratios, each read
    # and written, and the updates once more with the first moments.
    passes = moved["optimizer", "_foreach_mul_"] / (4 * parameters)
    assert passes == pytest.approx(2 + 2 + 2 + 3 + 2, rel=2e-3)


@needs_tracing
def test_the_command_prints_numbers_and_their_definitions() -> None:
    done = run(*SMALL, "--accumulation", "1,3", "--bandwidth", "2")
    assert done.returncode == 0, done.stderr
    for text in ("mini: one training step in bf16", "backward, next", "_foreach_mul_",
                 "synchronisations: none", "bytes / 2 TB/s", "680 TFLOP/s"):  # fmt: skip
        assert text in done.stdout
    assert [line[:2] for line in done.stdout.splitlines() if line[:2] in ("1 ", "3 ")] == [
        "1 ",
        "3 ",
    ]


def bert_large(flags: str) -> Any:
    """The numbers of a step of BERT-large over micro-batches of 96."""
    done = run("mlperf_large_768", "--micro_batch", "96", "--json", *flags.split())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_tracing
def test_bert_large_moves_what_a_16_bit_residual_stream_should() -> None:
    """96 sequences of the real lengths: 95.9 GB a micro-batch; 142 with a float32 stream."""
    phases = bert_large("--precision bf16 --kernels flash")["phases"]
    both = [phases[f"{direction}, next"]["memory-bound"] for direction in ("forward", "backward")]
    assert 95.0e9 < sum(part["bytes"] for part in both) < 97.0e9
    assert sum(phase["synchronisations"] for phase in phases.values()) == 0


@needs_tracing
def test_bert_large_in_tritons_kernels_moves_little() -> None:
    """54.5 GB a micro-batch in 686 launches; LAMB and the norm that clips 44 bytes a parameter."""
    pytest.importorskip("triton", reason="triton is not installed")
    phases = bert_large("--precision bf16 --kernels triton")["phases"]
    both = [phases[f"{direction}, next"] for direction in ("forward", "backward")]
    assert 53.5e9 < sum(part["memory-bound"]["bytes"] for part in both) < 55.0e9
    kinds = ("matrix product", "attention", "memory-bound", "copy")
    assert sum(part[kind]["launches"] for part in both for kind in kinds) <= 700
    update = sum(phases[name]["memory-bound"]["bytes"] for name in ("clip", "optimizer"))
    assert 43.9 < update / 336_226_108 < 44.2
    assert sum(phase["synchronisations"] for phase in phases.values()) == 0


@needs_tracing
def test_bert_large_in_fp8_takes_less_time_on_paper_than_in_bf16() -> None:
    """Two of the three products of each of 4 x 24 layers are in 8 bits, at the rate of these."""
    pytest.importorskip("triton", reason="triton is not installed")
    found = bert_large("--precision fp8 --kernels triton --accumulation 8")
    scaled = [o for o in found["operations"] if o["operation"] == "_scaled_mm"]
    later = {o["phase"]: o for o in scaled if o["phase"].endswith("next")}
    assert {phase: o["launches"] for phase, o in later.items()} == {
        "forward, next": 96,
        "backward, next": 96,
    }
    for o in later.values():
        rate = o["flops"] / o["seconds"]
        assert rate == pytest.approx(found["rates"]["eight_bit_products"], rel=0.01)
    assert 1050 < found["steps"][0]["sequences_per_second"] < 1200  # 979 in bf16


@needs_tracing
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--precision", "fp32"), "give --gemm_tflops, --attention_tflops, --attention_backward"),
        (("--kernels", "efficient"), "efficient-varlen: give --attention_tflops, --attention_back"),
    ],
)
def test_rates_are_not_assumed_for_other_kernels(flags: tuple[str, ...], says: str) -> None:
    done = run("mini", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "or --precision bf16 --kernels flash" in done.stderr


@needs_tracing
def test_an_unknown_recipe_is_refused() -> None:
    done = run("no_such", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("trace_step: unknown recipe 'no_such'; known: mini")
    assert json.loads(done.stdout)["kind"] == "BadInput"


@pytest.mark.skipif(sys.platform != "linux", reason="tracing needs Linux")
def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": str(tmp_path)}
    done = run("mini", env=env)
    assert done.returncode == 2
    assert done.stderr == (
        "trace_step: tracing needs a C++ compiler: install g++ or clang, or set CXX\n"
    )


def run(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *args], capture_output=True, text=True, env=env)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    program()
