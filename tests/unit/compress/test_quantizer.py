# SPDX-License-Identifier: Apache-2.0
"""One quantizer: rounding, gradients, and calibration beside other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bertbench.common.compress.quantizer import (
    BINS,
    PERCENTILE,
    Quantizer,
    least_squares,
    percentile,
)


def calibrated(*tensors: torch.Tensor, weights: bool = False) -> Quantizer:
    quantizer = Quantizer()
    quantizer.begin_range()
    for tensor in tensors:
        assert quantizer(tensor) is tensor
    if weights:
        quantizer.finish()
        return quantizer
    quantizer.begin_histogram()
    for tensor in tensors:
        assert quantizer(tensor) is tensor
    quantizer.finish(percentile(quantizer.histogram(), quantizer.amax, PERCENTILE))
    return quantizer


def test_rounds_and_passes_gradients_as_torch_does() -> None:
    x = (3 * torch.randn(4000)).requires_grad_()
    quantizer = calibrated(torch.randn(1000))
    rounded, grad = quantizer(x), torch.randn(4000)
    rounded.backward(grad)
    own, x.grad = x.grad, None
    reference = torch.fake_quantize_per_tensor_affine(x, float(quantizer.scale), 0, -128, 127)
    reference.backward(grad)
    # torch multiplies by the scale's inverse: a tie may fall on the other side.
    assert (rounded - reference).abs().max() <= 1.001 * quantizer.scale
    assert (rounded != reference).float().mean() < 1e-3
    assert torch.equal(own, x.grad) and 0 < (own == 0).float().mean() < 0.9


def test_weights_take_their_largest_magnitude() -> None:
    weight = torch.randn(64, 64)
    quantizer = calibrated(weight, weights=True)
    assert quantizer.amax == weight.abs().max()
    steps = quantizer(weight) / quantizer.scale
    assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.abs().max() <= 127.001


def test_activations_take_the_percentile_of_all_samples() -> None:
    tensors = [torch.randn(50_000) ** 3 for _ in range(3)]
    quantizer = calibrated(*tensors)
    magnitudes = torch.cat(tensors).abs()
    exact = np.percentile(magnitudes.numpy(), 99.99)
    assert abs(float(quantizer.amax) - exact) <= float(magnitudes.max()) / BINS


def test_percentile_equals_modelopt_within_a_bin() -> None:
    calib = pytest.importorskip("modelopt.torch.quantization.calib", reason="modelopt is absent")
    x = torch.randn(200_000)
    peer = calib.HistogramCalibrator(num_bits=8, axis=None, unsigned=False, num_bins=BINS)
    peer.collect(x)
    theirs = float(peer.compute_amax("percentile", percentile=99.99))
    assert abs(float(calibrated(x).amax) - theirs) <= float(x.abs().max()) / BINS * 1.001


def test_percentile_is_the_end_of_the_bin_that_reaches_it() -> None:
    histogram = torch.zeros(10, dtype=torch.int64)
    histogram[2], histogram[7] = 90, 10
    assert percentile(histogram, torch.tensor(5.0), 90) == pytest.approx(1.5)
    assert percentile(histogram, torch.tensor(5.0), 91) == pytest.approx(4.0)
    assert percentile(histogram, torch.tensor(5.0), 100) == pytest.approx(4.0)


@pytest.mark.parametrize(("power", "gain"), [(1, 1.0), (3, 1.1)])
def test_the_least_squared_error_is_that_of_all_candidates(power: int, gain: float) -> None:
    """Of a distribution with a long tail it is far below the largest magnitude."""
    x = torch.randn(200_000).abs() ** power
    largest = x.max()
    histogram = torch.histc(x, BINS, 0, float(largest)).long()
    found = float(least_squares(histogram, largest))

    def error(amax: float) -> float:
        step = amax / 127
        return float((x - (x / step).round().clamp(max=127) * step).square().sum())

    candidates = [float(largest) * n / 256 for n in range(1, 257)]
    assert error(found) <= 1.02 * min(map(error, candidates))
    assert error(float(largest)) >= gain * error(found)
    assert float(least_squares(torch.zeros(BINS).long(), torch.tensor(0.0))) == 0


def test_zeros_stay_zeros() -> None:
    assert torch.equal(calibrated(torch.zeros(8))(torch.zeros(3)), torch.zeros(3))


def test_does_nothing_before_it_is_calibrated() -> None:
    x = torch.randn(3)
    assert Quantizer()(x) is x


def test_keeps_the_type() -> None:
    quantizer = calibrated(torch.randn(100))
    assert quantizer(torch.randn(8).bfloat16()).dtype == torch.bfloat16
