# SPDX-License-Identifier: Apache-2.0
"""Symmetric INT8 of one scale per tensor, learnt by calibration and trained through.

x -> clamp(round(x / scale), -128, 127) * scale with scale = amax / 127. Weights take their largest
magnitude as amax; activations the 99.99 percentile of their magnitudes, in histograms of 2,048
bins: "MLPerf INT8 BERT Finetuning" (mlcommons/inference, language/bert). Or both take the amax of
the least squared rounding error. The paper clips at -127; ONNX's QuantizeLinear, and so every
engine, at -128, and here training computes what engines do.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

LEVELS, LOWEST = 127, -128
BINS = 2048
PERCENTILE = 99.99
CANDIDATES = 256
_SMALLEST = 2.0**-20
"""amax of a tensor of zeros: any scale represents it."""


class _Rounded(torch.autograd.Function):
    """As torch.fake_quantize_per_tensor_affine, but divided by the scale as ONNX defines it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return (x / scale).round_().clamp_(LOWEST, LEVELS).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        kept = (x > (LOWEST - 0.5) * scale) & (x < (LEVELS + 0.5) * scale)
        return grad * kept, None


class Quantizer(nn.Module):
    """Rounds a tensor to INT8 and back; gradients pass where nothing was clipped.

    It does nothing until it has been calibrated.
    """

    amax: Tensor
    """float32 [], the magnitude that 127 stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amax", torch.zeros(()))
        self.mode: Literal["off", "range", "histogram", "on"] = "off"
        self._histogram: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """float32 [], the step between two levels."""
        return self.amax / LEVELS

    def forward(self, x: Tensor) -> Tensor:
        """Return x [...] rounded; while it is calibrated, x itself."""
        if self.mode == "on":
            rounded: Tensor = _Rounded.apply(x.float(), self.scale)
            return rounded.to(x.dtype)
        if self.mode == "range":
            self.amax = torch.maximum(self.amax, x.detach().abs().amax().float())
        elif self.mode == "histogram":
            self._count(x.detach().abs().float())
        return x

    def _count(self, magnitudes: Tensor) -> None:
        # Not torch.histc, which some accelerators lack.
        at = (magnitudes.flatten() * (BINS / self.amax.clamp_min(_SMALLEST))).long()
        found = torch.bincount(at.clamp_max(BINS - 1), minlength=BINS)
        self._histogram = found if self._histogram is None else self._histogram + found

    # -- calibration, in this order ---------------------------------------------------------------
    def begin_range(self) -> None:
        """Take the largest magnitude of the tensors that follow."""
        self.amax.zero_()
        self.mode = "range"

    def begin_histogram(self) -> None:
        """Count the magnitudes of the tensors that follow, from 0 to the largest."""
        self._histogram, self.mode = None, "histogram"

    def histogram(self) -> Tensor:
        """Return the magnitudes' counts, int64 [BINS]."""
        empty = torch.zeros(BINS, dtype=torch.int64, device=self.amax.device)
        return empty if self._histogram is None else self._histogram

    def finish(self, amax: Tensor | None = None) -> None:
        """Quantise from now on, up to ``amax`` []; default: to the largest magnitude."""
        if amax is not None:
            self.amax.copy_(amax)
        self.amax.clamp_min_(_SMALLEST)
        self._histogram, self.mode = None, "on"


def percentile(histogram: Tensor, largest: Tensor, percent: float) -> Tensor:
    """Return the end of the first bin up to which ``percent`` % of the magnitudes lie, float32 [].

    ``histogram`` is int64 [bins], of bins of one width from 0 to ``largest``, float32 [].
    """
    reached = histogram.cumsum(0) >= percent / 100 * histogram.sum()
    return (reached.long().argmax() + 1) * largest / len(histogram)


def least_squares(histogram: Tensor, largest: Tensor) -> Tensor:
    """Return the amax, float32 [], whose INT8 values are nearest to the magnitudes.

    Of CANDIDATES parts of ``largest``, the one with the least sum of squared differences between
    the bins' middles and what they are rounded to. Shapes as in ``percentile``.
    """
    counts, end = histogram.cpu().double(), largest.cpu().double()
    middles = (torch.arange(len(counts)) + 0.5) * end / len(counts)
    ends = torch.arange(1, CANDIDATES + 1, dtype=torch.float64)[:, None] * end / CANDIDATES
    steps = (ends / LEVELS).clamp_min(_SMALLEST / LEVELS)
    rounded = torch.round(middles / steps).clamp_max(LEVELS) * steps
    errors = (counts * (middles - rounded).square()).sum(1)
    return ends[errors.argmin(), 0].to(largest)
