# SPDX-License-Identifier: Apache-2.0
"""A model with compressed layers: what is compressed, and that training and states keep it."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from bertbench.benchmarks.bert_squad.model import BertForQuestionAnswering, span_loss
from bertbench.benchmarks.bert_squad.recipes import PRESETS
from bertbench.common.compress.layers import (
    OWN_STATE,
    compress,
    compressed_layers,
    named_quantizers,
)
from bertbench.common.compress.pruning import most_nonzeros
from bertbench.common.compress.start import Compression, calibrate
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.model.ops import Ops
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from tests.unit.compress.conftest import batch, config

ONE = World.from_env()


def started(model, *, prune: bool = True, quantize: bool = True) -> Compression:
    recipe = SimpleNamespace(
        weight_sparsity="2:4" if prune else None, quantization="int8" if quantize else None
    )
    compression = Compression.of(recipe, model)
    step = SimpleNamespace(num_samples=64, micro_batches=[batch(9, 30, 4), batch(17, 48)])
    notes = compression.start(model, iter([step] * 9), lambda part, _: model(part), ONE)
    assert len(notes) == prune + quantize
    return compression


def test_changes_nothing_before_it_starts(model) -> None:
    model.eval()
    before, names = model(batch(9, 30)), [name for name, _ in model.named_parameters()]
    compress(model, prune=True, quantize=True)
    assert torch.allclose(model(batch(9, 30)), before, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names
    own = set(model.state_dict()) - set(names)
    assert own and all(any(mark in name for mark in OWN_STATE) for name in own)
    assert not any(mark in name for name in names for mark in OWN_STATE)


@pytest.mark.parametrize(("norm_position", "activations"), [("pre", 289), ("post", 292)])
def test_quantizers_are_where_the_published_recipes_have_them(norm_position, activations) -> None:
    """24 layers, as BERT-large: facts of MLPerf Inference v0.7's sparse submission."""
    large = BertForQuestionAnswering(config(norm_position, layers=24), Ops())
    compress(large, prune=True, quantize=True)
    names = list(named_quantizers(large))
    assert sum(name.endswith("_weight") for name in names) == 96
    assert sum(not name.endswith("_weight") for name in names) == activations
    assert sum(len(layer.pruned) for layer in compressed_layers(large)) == 96


def test_rounds_all_it_should(model) -> None:
    """Each quantizer that is made coarse changes the output."""
    model.eval()
    started(model, prune=False)
    before = model(batch(9, 30))
    for name, quantizer in named_quantizers(model).items():
        fine = quantizer.amax.clone()
        quantizer.amax.mul_(40)
        assert not torch.equal(model(batch(9, 30)), before), name
        quantizer.amax.copy_(fine)
    assert torch.equal(model(batch(9, 30)), before)


@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam", "lamb"])
def test_pruned_weights_stay_zero_for_fifty_steps(model, optimizer: str) -> None:
    compression = started(model)
    groups = parameter_groups(model, 0.01)
    stepper = build_optimizer(optimizer, groups, lr=1e-2, fused=False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    masks = [layer.qkv_mask.clone() for layer in compressed_layers(model)]
    for number in range(50):
        part = batch(5 + number % 20, 30)
        stepper.zero_grad()
        span_loss(model(part), part).backward()
        stepper.step()
    assert compression.facts(model)["pruned_weights_kept"] == 0.5
    for layer, mask in zip(compressed_layers(model), masks, strict=True):
        assert torch.equal(layer.qkv.weight != 0, mask) and torch.equal(layer.qkv_mask, mask)
        assert all(most_nonzeros(getattr(layer, name).weight) == 2 for name in layer.pruned)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if
               "position" not in name and "word" not in name)  # fmt: skip


def test_the_state_holds_masks_and_scales(model) -> None:
    started(model)
    other = BertForQuestionAnswering(model.config, Ops())
    compress(other, prune=True, quantize=True)
    other.load_state_dict(model.state_dict())
    for quantizer in named_quantizers(other).values():
        quantizer.finish()
    assert torch.equal(other.eval()(batch(9, 30)), model.eval()(batch(9, 30)))


class Threads:
    """Two ranks' collectives, for two threads."""

    def __init__(self) -> None:
        self.given: dict[int, object] = {}
        self.met = threading.Barrier(2)

    def rank(self, number: int) -> SimpleNamespace:
        def gather(value):
            self.given[number] = value
            self.met.wait()
            both = [self.given[0], self.given[1]]
            self.met.wait()
            return both

        return SimpleNamespace(gather=gather, sum_=lambda tensor: sum(gather(tensor)))


def test_ranks_with_parts_of_the_samples_get_the_scales_of_all(model) -> None:
    model.eval()
    compress(model, prune=False, quantize=True)
    parts, models = [batch(9, 30, 4), batch(17, 48)], [model, copy.deepcopy(model)]
    calibrate(model, lambda: [model(part) for part in parts], ONE)
    alone = {name: q.amax.clone() for name, q in named_quantizers(model).items()}
    world = Threads()
    with ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda r: calibrate(models[r], lambda: models[r](parts[r]), world.rank(r)), (0, 1)
            )
        )
    for own in models:
        assert {name: q.amax for name, q in named_quantizers(own).items()} == alone


def test_a_model_too_small_for_two_of_four_is_refused() -> None:
    from dataclasses import replace

    odd = replace(config(), hidden_size=12, intermediate_size=12)
    recipe = SimpleNamespace(weight_sparsity="2:4")
    with pytest.raises(BadInput, match="--hidden_size"):
        Compression.of(recipe, BertForQuestionAnswering(odd, Ops()))
    assert Compression.of(SimpleNamespace(), BertForQuestionAnswering(odd, Ops())) is None


def test_recipes_without_compression_keep_their_hash() -> None:
    """As of the records from before compression."""
    assert recipe_hash(PRESETS["squad_mini"].recipe, data=None) == "59eec08841946c63"
