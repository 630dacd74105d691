# SPDX-License-Identifier: Apache-2.0
"""Contract: kernels, optimizers, compilers and ten training steps equal the reference."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bertbench.backends.accelerator import TF32_TOLERANCE
from bertbench.backends.base import PRECISIONS, Backend
from bertbench.backends.selfcheck import attention_why_not
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import Lamb, parameter_groups
from bertbench.common.optim.norms import tensor_norms
from tests.contract.helpers import DTYPES, GRADIENT_TOLERANCE, claimed, kernels_for
from tests.contract.tiny_task import exact_precision, ten_steps, tiny_task

LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8, "fp8": 2**-7}
"""Relative, of each of ten losses against cpu_ref in fp32 with plain kernels.

A loss is a mean over hundreds of numbers, so one rounding of its inputs to 10 explicit bits (tf32,
fp16) or to 7 (bf16) bounds it: half a unit in the last place is 2^-11 and 2^-8. On two CPUs bf16
stayed below 4e-4. The rounding of fp8 in plain PyTorch moved the ten losses by 8e-4 at most, and
those of a pre-LN model by 1.1e-2. fp32 differs only in the order of sums: 2^-24 each, some dozens
of them in a row, amplified by ten steps; 1e-7 was seen. The erf form of GELU in place of the tanh
form moves the losses by more than 1e-5."""


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_kernels_equal_plain_forward_and_backward(backend: Backend, gelu: str, norm: str) -> None:
    """Each claimed kernel, in each claimed precision, gives the reference's losses and gradients.

    ``Ops`` in fp32 on the CPU is the reference. A device whose exact GELU is
    another form must say which in ``verify_precision``, and is then compared with that one.
    """
    exact = exact_precision(backend)
    task, _ = tiny_task(backend, "--precision", exact, "--kernels", "plain")
    config = dataclasses.replace(task.recipe.model, gelu=gelu, norm_position=norm)
    form = backend.verify_precision(exact)["gelu"] if gelu == "erf" else gelu
    assert form in ("erf", "tanh"), f"F.gelu of 1.0 is {form}: no GELU that the reference knows"
    batch = next(task.train_batches(None)).micro_batches[0]
    torch.manual_seed(0)
    plain = BertForPreTraining(dataclasses.replace(config, gelu=form), Ops())

    def losses_and_gradients(model: nn.Module, on: Any, precision: Any) -> tuple[float, float]:
        with precision:
            out = model(on)
        (out.mlm_loss / 80 + out.nsp_loss / 8).backward()
        return out.mlm_loss.item(), out.nsp_loss.item()

    want = losses_and_gradients(plain, batch, contextlib.nullcontext())
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    whole = float(torch.stack([g.norm() for g in wanted.values()]).norm())
    for precision in backend.capabilities.precisions:
        for kernels in kernels_for(backend, precision):
            what = f"{kernels} in {precision}"
            model = BertForPreTraining(config, backend.ops(kernels, precision))
            model.load_state_dict(plain.state_dict())
            model.to(backend.device)
            got = losses_and_gradients(
                model, batch.to(backend.device), backend.precision(precision)
            )
            assert got == pytest.approx(want, rel=LOSS_TOLERANCE[precision] * 2), what
            for name, p in model.named_parameters():
                if name not in wanted:
                    continue
                assert p.grad is not None, f"{what}: no gradient for {name}"
                difference = float((p.grad.float().cpu() - wanted[name]).norm())
                error = difference / max(float(wanted[name].norm()), whole / 100)
                assert error <= GRADIENT_TOLERANCE[precision], (
                    f"{what}: the gradient of {name} is off by {error:.1e} of its norm"
                )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_masked_attention_equals_the_reference(backend: Backend, precision: str) -> None:
    """Every kernel's, in outputs and gradients; ``attention_why_not`` has the tolerances."""
    claimed(backend, precision)
    for kernels in kernels_for(backend, precision):
        ops = backend.masked_ops(kernels, precision)
        tolerance = TF32_TOLERANCE if precision == "tf32" else None
        dtype = DTYPES.get(precision, torch.float32)
        why = attention_why_not(ops, backend.device, dtype, tolerance, masked=True)
        assert why is None, kernels


def test_the_recorded_type_of_norms_is_the_one_they_have(backend: Backend) -> None:
    """Where ``kernels`` says that LayerNorm is in 16 bits, it is so under the device's autocast."""
    for precision, dtype in DTYPES.items():
        if precision not in backend.capabilities.precisions:
            continue
        for kernels in kernels_for(backend, precision):
            ops = backend.ops(kernels, precision)
            recorded = ops.kernels.get("norm")
            x = torch.ones(4, 64, device=backend.device, dtype=dtype)
            gain = torch.ones(64, device=backend.device)
            with backend.precision(precision):
                got = ops.norm(x, gain, gain, eps=1e-12).dtype
            assert recorded is None or got == dtype, (
                f"{kernels}: the record has {recorded}, but LayerNorm returns {got}"
            )


def test_norms_of_large_tensors_are_exact(backend: Backend) -> None:
    """Sums of millions of squares lose digits unless they are added up in parts (norms.py)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (30522, 1024), (4096, 1024), (1024,)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    got = tensor_norms([t.to(backend.device) for t in tensors])
    for tensor, norm in zip(tensors, got.tolist(), strict=True):
        assert norm == pytest.approx(float(tensor.double().norm()), rel=2e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_ten_steps_equal_the_reference(backend: Backend, reference: Any, precision: str) -> None:
    """Ten optimizer steps through the suite's loop give cpu_ref's losses, every one of them."""
    claimed(backend, precision)
    want = reference.curve.losses
    assert want[-1] < 0.9 * want[0], "the reference itself does not learn: wrong flags"
    for kernels in kernels_for(backend, precision):
        flags = ("--precision", precision, "--kernels", kernels)
        curve = ten_steps(backend, reference.weights, *flags)
        assert curve.steps[-1].skipped_steps == 0, "no step may overflow at a loss scale of 256"
        for step, (got, loss) in enumerate(zip(curve.losses, want, strict=True), 1):
            off = abs(got / loss - 1)
            assert off <= LOSS_TOLERANCE[precision], (
                f"{kernels} kernels in {precision}: loss {got:.6f} at step {step} is off by "
                f"{off:.1e} from cpu_ref's {loss:.6f}; allowed {LOSS_TOLERANCE[precision]:.1e}"
            )


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_optimizers_equal_plain_ones(backend: Backend, name: str) -> None:
    """Three updates through ``optimizer_step``, by each LAMB kernel, equal the CPU's plain ones.

    The first of LAMB's has a factor that clips.
    """
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(40, 48), nn.LayerNorm(48), nn.Linear(48, 8))
    start[0].segments = 3  # type: ignore[assignment]  # as fused query, key and value
    gradients = [[torch.randn_like(p) for p in start.parameters()] for _ in range(3)]

    def three_updates(
        model: nn.Module, kernel: Any, step: Callable[[Any], None], fused: bool
    ) -> list[Tensor]:
        groups = parameter_groups(model, 0.01)
        optimizer = build_optimizer(name, groups, lr=0.1, lamb_kernel=kernel, fused=fused)
        if isinstance(optimizer, Lamb):
            optimizer.clip_factor = torch.tensor(0.4, device=next(model.parameters()).device)
        for update in gradients:
            for p, gradient in zip(model.parameters(), update, strict=True):
                p.grad = gradient.to(p.device, copy=True)  # which a kernel may overwrite
            step(optimizer)
        return [p.detach().cpu() for p in model.parameters()]

    want = three_updates(copy.deepcopy(start), None, lambda optimizer: optimizer.step(), False)
    scaler = backend.grad_scaler(exact_precision(backend))
    for kernels in backend.capabilities.kernels:
        got = three_updates(
            copy.deepcopy(start).to(backend.device), backend.lamb_kernel(kernels),
            lambda optimizer: backend.optimizer_step(optimizer, scaler), backend.fused_adamw,
        )  # fmt: skip
        for a, b in zip(got, want, strict=True):
            off = float((a - b).abs().max() / b.abs().max())
            assert off < 1e-5, f"{name} with {kernels} kernels: weights are off by {off:.1e}"


def test_compilers_compute_the_same(backend: Backend) -> None:
    """A model compiled by each claimed compiler gives the gradients that it gives uncompiled."""
    if not backend.capabilities.compilers:
        pytest.skip(f"{backend.name} claims no compiler")
    exact = exact_precision(backend)

    def gradients(*flags: str) -> dict[str, Tensor]:
        task, _ = tiny_task(backend, "--precision", exact, *flags)
        step = next(task.train_batches(None))
        with backend.precision(exact):
            loss, _ = task.loss(task.model, step.micro_batches[0].to(backend.device), step)
        loss.backward()
        return {n: p.grad.cpu() for n, p in task.model.named_parameters() if p.grad is not None}

    want = gradients()
    whole = float(torch.stack([g.norm() for g in want.values()]).norm())
    for compiler in backend.capabilities.compilers:
        got = gradients("--compile", compiler)
        assert got.keys() == want.keys(), "compile in place: checkpoints must fit either way"
        for name, gradient in got.items():
            error = float((gradient - want[name]).norm()) / max(
                float(want[name].norm()), whole / 100
            )
            assert error <= GRADIENT_TOLERANCE[exact], (
                f"{compiler}: the gradient of {name} is off by {error:.1e} of its norm"
            )
