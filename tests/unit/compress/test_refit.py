# SPDX-License-Identifier: Apache-2.0
"""Weights that stay make up for the pruned ones."""

from __future__ import annotations

import copy

import pytest
import torch

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering
from bertbench.common.compress.layers import LINEAR, compress, compressed_layers
from bertbench.common.compress.pruning import KEPT, most_nonzeros, two_of_four
from bertbench.common.compress.refit import DAMPING, prune_and_refit
from bertbench.common.compress.start import Compression
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.model.ops import ComputeTypeOps, Ops
from tests.unit.compress.conftest import batch, config

LAYERS = 2
GIVEN = [batch(9, 30 + n, 4 + n, 41 - n) for n in range(6)]


def made(norm_position: str) -> BertForQuestionAnswering:
    torch.manual_seed(3)
    model = BertForQuestionAnswering(config(norm_position, LAYERS), Ops()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1).add_(0.1 * torch.randn_like(p))
    compress(model, prune=True, quantize=False)
    return model


def refitted(model: BertForQuestionAnswering) -> BertForQuestionAnswering:
    found = copy.deepcopy(model)
    prune_and_refit(found, lambda: [found(each) for each in GIVEN], World.from_env())
    return found


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_masks_stay_and_outputs_come_nearer(norm_position: str) -> None:
    dense = made(norm_position)
    cut = copy.deepcopy(dense)
    for layer in compressed_layers(cut):
        layer.prune()
    found = refitted(dense)
    assert not found.training
    for ours, theirs in zip(compressed_layers(found), compressed_layers(cut), strict=True):
        assert ours.products is None
        for name in LINEAR:
            weight = getattr(ours, name).weight
            assert most_nonzeros(weight) <= KEPT
            assert torch.equal(getattr(ours, f"{name}_mask"), getattr(theirs, f"{name}_mask"))
            assert not weight[~getattr(ours, f"{name}_mask")].any()
    with torch.no_grad():
        errors = [
            sum(float((model(each) - dense(each)).square().mean()) for each in GIVEN)
            for model in (found, cut)
        ]
    assert errors[0] < 0.7 * errors[1], errors


def test_each_row_is_the_least_squares_solution() -> None:
    """Against numpy's solver over the inputs themselves, with the damping as further rows."""
    dense = made("pre")
    first = compressed_layers(dense)[0]
    seen: list[torch.Tensor] = []
    operands = first._operands

    def watched(x, part):
        if part is first.qkv:
            seen.append(x)
        return operands(x, part)

    first._operands = watched
    with torch.no_grad():
        for each in GIVEN:
            dense(each)
    del first._operands
    x = torch.cat(seen).double()
    weight, bias = first.qkv.weight.detach().double(), first.qkv.bias.detach().double()
    strength = (DAMPING * x.square().sum(0).mean()).sqrt()
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    got = compressed_layers(refitted(dense))[0].qkv
    kept = two_of_four(weight)
    for row in (0, 7, 50):
        places = [*kept[row].nonzero()[:, 0].tolist(), x.shape[1]]
        start = torch.cat([weight[row], bias[row : row + 1]])
        a = torch.cat([inputs[:, places], strength * torch.eye(len(places))])
        b = torch.cat([inputs @ start, strength * start[places]])
        want = torch.linalg.lstsq(a, b[:, None].double()).solution[:, 0]
        have = torch.cat([got.weight[row], got.bias[row : row + 1]]).detach().double()
        torch.testing.assert_close(have[places], want, rtol=2e-3, atol=2e-4)


def test_a_sparse_model_stays_as_it_is() -> None:
    once = refitted(made("post"))
    again = refitted(once)
    for a, b in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_16_bit_stream_is_refitted_in_float32() -> None:
    """As on a GPU in bf16, whose products under autocast would be too coarse for the systems."""
    torch.manual_seed(3)
    model = BertForQuestionAnswering(config("post", LAYERS), ComputeTypeOps(torch.bfloat16)).eval()
    compress(model, prune=True, quantize=False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        prune_and_refit(model, lambda: [model(each) for each in GIVEN], World.from_env())
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32 and p.isfinite().all()
        if name.endswith(("qkv.weight", "output.weight")):
            kept = p != 0
            assert 0.4 < kept.float().mean() <= 0.5 and not torch.equal(p[kept], before[name][kept])


def test_inputs_of_zeros_leave_the_weights_that_stay() -> None:
    model = made("post")
    with torch.no_grad():
        norm = compressed_layers(model)[0].output_norm
        norm.weight.zero_(), norm.bias.zero_()
    found = refitted(model)
    kept = compressed_layers(found)[1].qkv_mask
    weight = compressed_layers(model)[1].qkv.weight
    torch.testing.assert_close(compressed_layers(found)[1].qkv.weight, weight * kept)


def test_the_recipe_asks_for_it_and_not_without_sparsity() -> None:
    flags = ["--pruning", "least_squares"]
    with pytest.raises(BadInput, match="without --weight_sparsity 2:4"):
        resolve("squad_mini", flags)
    for more, refits in ((flags, True), ([], False)):
        recipe = resolve("squad_mini", ["--weight_sparsity", "2:4", *more]).recipe
        model = BertForQuestionAnswering(config("post", LAYERS), Ops())
        found = Compression.of(recipe, model)
        assert found is not None and found.refit is refits
