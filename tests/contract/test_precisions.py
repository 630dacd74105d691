# SPDX-License-Identifier: Apache-2.0
"""Contract: each claimed precision is the one that the device computes in."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bertbench.backends import selfcheck
from bertbench.backends.base import PRECISIONS, Backend
from bertbench.common.errors import Unsupported
from tests.contract.helpers import DTYPES, claimed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_claimed_precision_is_really_used(backend: Backend, precision: str) -> None:
    """Products have the dtype and keep the digits that the name promises; nothing lingers."""
    claimed(backend, precision)
    x = torch.ones(64, 64, device=backend.device)
    with backend.precision(precision):
        got = F.linear(x, x).dtype
    wanted = DTYPES.get(precision, torch.float32)
    assert got == wanted, f"precision({precision!r}) computes in {got}: refuse it, or make it so"
    try:
        found = backend.verify_precision(precision)
    except Unsupported as error:
        pytest.fail(f"claims {precision}, but its own check says: {error}", pytrace=False)
    assert all(isinstance(value, str) for value in found.values())
    assert "product_mantissa_bits" in found and selfcheck.why_not(precision, found) is None
    after = selfcheck.examine(backend.device)  # where backward passes run
    assert after["product_dtype"] == "float32", "autocast stays on after precision() is left"
    if precision in ("fp32", "tf32"):
        wrong = selfcheck.why_not(precision, after)
        assert wrong is None, f"outside precision({precision!r}), in the backward pass, {wrong}"


def test_fp32_comes_back_after_tf32(backend: Backend) -> None:
    """Leaving TF32 for fp32 turns its switch off again: each request is fulfilled."""
    claimed(backend, "tf32")
    claimed(backend, "fp32")
    for precision in ("tf32", "fp32", "tf32"):
        backend.verify_precision(precision)


@pytest.mark.parametrize("precision", [*PRECISIONS, "int3"])
def test_an_unclaimed_precision_is_refused(backend: Backend, precision: str) -> None:
    """A missing precision is Unsupported; the message lists the others and names the flag."""
    have = backend.capabilities.precisions
    if precision in have:
        pytest.skip(f"{backend.name} claims {precision}: nothing to refuse")
    for use in (backend.resolve_precision, backend.precision, backend.verify_precision):
        with pytest.raises(Unsupported) as refused:
            use(precision)
        text = str(refused.value)
        assert all(name in text for name in have), f"{text!r} must list {', '.join(have)}"
        assert "--precision" in text, f"{text!r} must name the fix: --precision"


def test_amp_is_the_best_claimed_half_precision(backend: Backend) -> None:
    """``amp`` is the first of bf16 and fp16 that is claimed; with neither it is refused.

    ``auto``, what recipes ask for, is the same where there is one, and never refused.
    """
    halves = [p for p in backend.capabilities.precisions if p in ("bf16", "fp16")]
    automatic = backend.resolve_precision("auto")
    assert automatic == (halves or list(backend.capabilities.precisions))[0]
    if halves:
        assert backend.resolve_precision("amp") == halves[0]
    else:
        with pytest.raises(Unsupported, match="--precision"):
            backend.resolve_precision("amp")


def test_loss_scaling_is_for_fp16_only(backend: Backend) -> None:
    """bf16 has fp32's range: a scaler there only costs time and hides overflow."""
    for precision in backend.capabilities.precisions:
        enabled = backend.grad_scaler(precision).is_enabled()
        assert enabled == (precision == "fp16"), f"grad_scaler({precision!r}): enabled={enabled}"


def test_loss_scale_backs_off_on_infinity(backend: Backend) -> None:
    """An infinite gradient leaves the weights as they are and halves the scale."""
    claimed(backend, "fp16")
    weight = nn.Parameter(torch.ones(4, device=backend.device))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = backend.grad_scaler("fp16", 1024.0)
    for gradient, scale, value in ((math.inf, 512.0, 1.0), (1.0, 512.0, 0.0)):
        scaler.scale((weight * gradient).sum()).backward()
        backend.optimizer_step(optimizer, scaler)
        optimizer.zero_grad()
        assert scaler.get_scale() == scale, f"after a gradient of {gradient}"
        assert weight.tolist() == [value] * 4, f"after a gradient of {gradient}"
