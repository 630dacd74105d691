# SPDX-License-Identifier: Apache-2.0
"""Whether the kernels compute on a device what plain PyTorch computes on the host."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.selfcheck import TOLERANCES
from bertbench.common.files import why
from bertbench.common.model.ops import Ops

E4M3_LARGEST = 448.0
EIGHT_TOLERANCE = 0.25
"""Inputs that differ in their last digit of 16 bits round to 8-bit numbers a sixteenth apart."""
_LENGTHS, _HIDDEN, _VOCABULARY = (5, 33, 1, 17), 48, 300


def absent() -> str | None:
    """Return why Triton cannot be imported, or None."""
    if importlib.util.find_spec("triton") is None:
        return "package triton is not installed"
    return None


def why_not(
    ops: Ops, device: torch.device, dtype: torch.dtype, tolerance: float | None = None
) -> str | None:
    """Try every kernel of ``ops`` on ``device``; return why they cannot be used, or None.

    One chain of all operations but attention, forward and backward, is compared with ``Ops`` on
    the host in float32, twice: the second gradients are added to the first. ``tolerance`` replaces
    that of ``TOLERANCES``.
    """
    fp8 = ops.in_layers is not ops
    allowed = EIGHT_TOLERANCE if fp8 else TOLERANCES[dtype] if tolerance is None else tolerance
    state = torch.random.get_rng_state()
    try:
        got = _chain(ops, device)
        forgotten = _dropout_problem(ops, device, dtype)
    except Exception as error:  # whatever a compiler or device may raise, it is a reason
        return f"{type(error).__name__}: {why(error)[:160]}"
    finally:
        torch.random.set_rng_state(state)
    if forgotten is not None:
        return forgotten
    plain = RoundedOps() if fp8 else Ops()
    for (name, mine), right in zip(got.items(), _chain(plain, torch.device("cpu")).values(),
                                   strict=True):  # fmt: skip
        off = float((mine - right).abs().max() / right.abs().max().clamp_min(1e-12))
        if not off <= allowed:
            return f"its {name} differs from plain PyTorch's by {off:.1e} of the largest value"
    return None


class RoundedOps(Ops):
    """``Ops`` whose linear layers round as those of fp8.py do, in plain PyTorch."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _RoundedLinear.apply(x, weight) + bias

    def masked_cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        return Ops().masked_cross_entropy(x, weight, bias, labels)


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _rounded(x) @ _rounded(weight).t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return _rounded(dy) @ _rounded(weight.t()).t(), dy.t() @ x


def _rounded(x: Tensor) -> Tensor:
    """Return x [T, N] rounded to 8 bits by row, in its own type."""
    largest = x.detach().float().abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / E4M3_LARGEST, 1.0)
    values = (x / scale).clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn)
    return (values.float() * scale).to(x.dtype)


def _chain(ops: Ops, device: torch.device) -> dict[str, Tensor]:
    """Return the loss and the gradient of each parameter, on the host in float32."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int, scale: float = 1.0) -> Tensor:
        x = (scale * torch.randn(*shape, generator=generator)).bfloat16().float()
        return x.to(device).requires_grad_()

    total, wide = sum(_LENGTHS), 4 * _HIDDEN
    tokens: Any = SimpleNamespace(
        num_tokens=total,
        input_ids=torch.randint(_VOCABULARY, (total,), generator=generator).to(device),
        position_ids=torch.cat([torch.arange(n) for n in _LENGTHS]).to(device),
        segment_ids=torch.randint(2, (total,), generator=generator).to(device),
    )
    rows = torch.tensor([1, 4, 7, 50], device=device)
    labels = torch.randint(_VOCABULARY, (len(rows),), generator=generator).to(device)
    p = {
        "word embedding": made(_VOCABULARY, _HIDDEN, scale=0.3),
        "position embedding": made(64, _HIDDEN, scale=0.3),
        "token type embedding": made(2, _HIDDEN, scale=0.3),
        **{f"{n} of norm {i}": made(_HIDDEN) for i in range(3) for n in ("gain", "bias")},
        "first weight": made(wide, _HIDDEN, scale=0.2),
        "first bias": made(wide),
        "second weight": made(_HIDDEN, wide, scale=0.1),
        "second bias": made(_HIDDEN),
        "decoder's bias": made(_VOCABULARY),
        "third weight": made(3 * _HIDDEN, _HIDDEN, scale=0.05),
        "third bias": made(3 * _HIDDEN),
    }
    for _ in range(2):
        loss, right = _pass(ops, p, tokens, rows, labels)
        loss.backward()
    grads = {f"gradient of the {n}": t.grad for n, t in p.items() if t.grad is not None}
    found = {"loss": loss, "count of right predictions": right, **grads}
    return {name: t.detach().float().cpu() for name, t in found.items()}


def _pass(
    ops: Ops, p: dict[str, Tensor], tokens: Any, rows: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    tables, norms, outer, ops = [*p.values()][:3], [*p.values()][3:9], ops, ops.in_layers
    x = outer.embed(tokens, *tables, *norms[:2], eps=1e-12, dropout=0.0)
    x = x + outer.embed_sum(tokens, *tables, dropout=0.0)
    inner = ops.linear_gelu(x, p["first weight"], p["first bias"], approximate="none")
    y = ops.linear(inner, p["second weight"], p["second bias"])
    x = ops.dropout_add_norm(y, x, *norms[2:4], eps=1e-12, dropout=0.0)
    x = ops.dropout_add(ops.norm(x, *norms[4:], eps=1e-12), x, dropout=0.0)
    split = getattr(ops, "split", lambda qkv, heads: qkv.view(len(qkv), 3, heads, -1).unbind(1))
    q, k, v = split(ops.linear(x, p["third weight"], p["third bias"]), 4)
    x = (q - 2 * k + 3 * v).flatten(1)
    return outer.masked_cross_entropy(
        outer.gather(x, rows), p["word embedding"], p["decoder's bias"], labels
    )


def _dropout_problem(ops: Ops, device: torch.device, dtype: torch.dtype) -> str | None:
    x = torch.ones(64, _HIDDEN, device=device, dtype=dtype).requires_grad_()
    out = ops.dropout_add(x, torch.zeros_like(x), dropout=0.5)
    out.sum().backward()
    assert x.grad is not None
    kept = out.detach() != 0
    if not 0.4 < kept.float().mean() < 0.6:
        return "its dropout does not keep the share that it should"
    if not torch.equal(kept, x.grad != 0):
        return "its backward pass does not drop what its forward pass dropped"
    return None
