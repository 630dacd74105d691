# SPDX-License-Identifier: Apache-2.0
"""LAMB against the written formula in float64, and what it does with groups and state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import Ops
from bertbench.common.optim.clip import clip_, clip_factor, grad_norm
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import Lamb, LambStep, lamb_update, parameter_groups
from bertbench.common.optim.norms import PIECE, tensor_norms

LR, EPS, DECAY = 2e-2, 1e-6, 0.01
BETAS = (0.9, 0.999)


class LiteralLamb:
    """The formula for one matrix or vector, line by line, in float64."""

    def __init__(self, p: Tensor) -> None:
        self.p = p.detach().double().clone()
        self.m, self.v, self.t = torch.zeros_like(self.p), torch.zeros_like(self.p), 0

    def step(self, g: Tensor, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        self.t += 1
        g, (beta1, beta2) = g.double(), betas
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        m_hat = self.m / (1 - beta1**self.t)
        v_hat = self.v / (1 - beta2**self.t)
        u = m_hat / (v_hat.sqrt() + EPS) + weight_decay * self.p
        p_norm = math.sqrt(float((self.p**2).sum()))
        u_norm = math.sqrt(float((u**2).sum()))
        ratio = p_norm / u_norm if weight_decay and p_norm and u_norm else 1.0
        self.p = self.p - lr * ratio * u


def small_model() -> BertForPreTraining:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=56,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    model = BertForPreTraining(config, Ops())
    with torch.no_grad():
        # q, k and v of clearly different sizes, so that one common norm would show.
        for layer, scale in zip(model.encoder.layers, (5.0, 20.0), strict=True):
            layer.qkv.weight[16:32] *= scale
            layer.qkv.weight[32:] /= scale
        model.next_sentence.weight.zero_()
    return model


def set_gradients(model: nn.Module, random: torch.Generator) -> None:
    for n, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=random) * 10.0 ** (-n % 5)


@pytest.mark.parametrize("betas", [BETAS, (0.60466, 0.85437)])
def test_twenty_steps_against_float64(betas):
    model, random = small_model(), torch.Generator().manual_seed(1)
    optimizer = Lamb(parameter_groups(model, DECAY), LR, betas, EPS)
    # What is one matrix, and what decays, said here without the code under test.
    literal: dict[str, list[LiteralLamb]] = {
        name: [LiteralLamb(part) for part in p.chunk(3 if name.endswith("qkv.weight") else 1)]
        for name, p in model.named_parameters()
    }
    for step in range(20):
        set_gradients(model, random)
        if step == 3:
            model.pooler.dense.weight.grad.zero_()
        lr = LR * (1 - step / 30)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, p in model.named_parameters():
            vector = name.endswith("bias") or "norm" in name
            for reference, g in zip(literal[name], p.grad.chunk(len(literal[name])), strict=True):
                reference.step(g, lr, 0.0 if vector else DECAY, betas)
        optimizer.step()
    for name, p in model.named_parameters():
        expected = torch.cat([reference.p for reference in literal[name]])
        assert (p.double() - expected).norm() < 1e-5 * expected.norm(), name


def test_one_step_by_hand():
    """g = (3, 4): m' = g, v' = g^2, so u = sign(g) + wd p; |p| = 5."""
    p = torch.tensor([[5.0, 0.0]])
    m, v = torch.zeros(1, 2), torch.zeros(1, 2)
    lamb_update(
        LambStep(
            [p], [torch.tensor([[3.0, 4.0]])], [m], [v], [1],
            lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, weight_decay=0.1, step=1,
        )
    )  # fmt: skip
    u = torch.tensor([[1.5, 1.0]])
    torch.testing.assert_close(p, torch.tensor([[5.0, 0.0]]) - 0.1 * 5.0 / u.norm() * u)
    torch.testing.assert_close(m, torch.tensor([[0.3, 0.4]]))
    torch.testing.assert_close(v, torch.tensor([[0.09, 0.16]]))


def test_no_ratio_where_a_norm_is_zero_or_nothing_decays():
    def first_step(p: Tensor, g: Tensor, weight_decay: float) -> Tensor:
        parameter = nn.Parameter(p)
        parameter.grad = g
        Lamb([{"params": [parameter], "weight_decay": weight_decay}], lr=0.1).step()
        return parameter.detach()

    torch.testing.assert_close(
        first_step(torch.zeros(2, 2), torch.ones(2, 2), DECAY), torch.full((2, 2), -0.1)
    )
    big = torch.full((2, 2), 100.0)
    torch.testing.assert_close(first_step(big.clone(), torch.ones(2, 2), 0.0), big - 0.1)
    zero = torch.zeros(2, 2)
    assert torch.equal(first_step(zero.clone(), zero.clone(), DECAY), zero)
    # with decay the ratio is not clamped: |p| / |u| = 200 / 4 here, so p moves by lr |p|
    moved = first_step(big.clone(), torch.ones(2, 2), DECAY)
    torch.testing.assert_close(moved, big * 0.9)


def test_fused_qkv_steps_like_three_matrices():
    torch.manual_seed(0)
    parts = [torch.randn(8, 8) * scale for scale in (1.0, 30.0, 0.01)]
    fused = nn.Parameter(torch.cat(parts))
    apart = [nn.Parameter(part.clone()) for part in parts]
    optimizers = [
        Lamb([{"params": [fused], "weight_decay": DECAY, "segments": [3]}], lr=LR),
        Lamb([{"params": apart, "weight_decay": DECAY}], lr=LR),
    ]
    for _ in range(5):
        fused.grad = torch.randn(24, 8)
        for p, g in zip(apart, fused.grad.chunk(3), strict=True):
            p.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(fused, torch.cat(apart))


def test_groups_are_made_by_kind_not_by_name():
    class Misnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.not_a_LayerNorm_bias = nn.Linear(4, 4)
            self.scale = nn.LayerNorm(4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

    decayed, plain = parameter_groups(Misnamed(), DECAY)
    assert decayed["params"][0][0] == "not_a_LayerNorm_bias.weight"
    assert (len(decayed["params"]), decayed["weight_decay"]) == (1, DECAY)
    assert [name for name, _ in plain["params"]] == [
        "not_a_LayerNorm_bias.bias",
        "scale.weight",
        "scale.bias",
    ]
    assert plain["weight_decay"] == 0.0


def test_every_parameter_of_a_bert_is_in_one_group():
    model = small_model()
    groups = parameter_groups(model, DECAY)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    fused = [
        name
        for group in groups
        for (name, _), n in zip(group["params"], group["segments"], strict=True)
        if n == 3 and name.endswith("weight")
    ]
    assert fused == ["encoder.layers.0.qkv.weight", "encoder.layers.1.qkv.weight"]


def test_state_dict_continues_bit_for_bit():
    model, random = small_model(), torch.Generator().manual_seed(2)
    optimizer = Lamb(parameter_groups(model, DECAY), LR)
    for _ in range(3):
        set_gradients(model, random)
        optimizer.step()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    assert {key for state in saved[1]["state"].values() for key in state} == {
        "exp_avg",
        "exp_avg_sq",
    }
    assert [group["step"] for group in saved[1]["param_groups"]] == [3, 3]

    other = small_model()
    resumed = Lamb(parameter_groups(other, DECAY), LR)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    set_gradients(model, random)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    resumed.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_kernel_replaces_the_update_and_gets_its_arguments():
    calls = []

    def kernel(step):
        calls.append(step)
        lamb_update(step)

    models = [small_model(), small_model()]
    optimizers = [
        Lamb(parameter_groups(m, DECAY), LR, BETAS, EPS, k)
        for m, k in zip(models, (kernel, None), strict=True)
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        set_gradients(model, torch.Generator().manual_seed(3))
        model.pooler.dense.weight.grad = None  # a parameter without gradient is left alone
        optimizer.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert [c.weight_decay for c in calls] == [DECAY, 0.0]
    matrices = [p for p in models[0].parameters() if p.ndim > 1]
    first = calls[0]
    assert len(first.params) == len(first.grads) == len(first.segments) == len(matrices) - 1
    assert len(first.exp_avgs) == len(first.exp_avg_sqs) == len(matrices) - 1
    assert first.segments.count(3) == 2
    assert (first.lr, first.beta1, first.beta2, first.eps, first.step) == (LR, 0.9, 0.999, EPS, 1)


def test_norms_of_large_tensors_stay_exact():
    torch.manual_seed(0)
    large = torch.randn(8 * PIECE + 12345) * 1e-3
    tensors = [large, torch.ones(3, 3), torch.zeros(5)]
    expected = torch.stack([t.double().norm() for t in tensors])
    torch.testing.assert_close(tensor_norms(tensors).double(), expected, rtol=1e-5, atol=0)


def test_clipping_by_global_norm():
    params = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(1)),
        nn.Parameter(torch.ones(1)),
    ]
    params[0].grad, params[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    norm = grad_norm(params)
    assert (norm.item(), norm.shape) == (7.0, ())
    clip_(params, norm, 14.0)
    assert params[0].grad.tolist() == [2.0, 3.0]
    clip_(params, norm, 1.0)
    torch.testing.assert_close(params[0].grad, torch.tensor([2.0, 3.0]) / 7)
    torch.testing.assert_close(params[1].grad, torch.tensor([6.0]) / 7)
    assert params[2].grad is None


def test_a_factor_clips_one_step_as_clipped_gradients_do():
    results = []
    for deferred in (False, True):
        p = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        optimizer = Lamb([{"params": [p], "weight_decay": 0.01}], lr=0.1)
        for size in (3.0, 0.5):
            p.grad = torch.full((2, 2), size)
            factor = clip_factor(grad_norm([p]), 2.0)
            if deferred:
                optimizer.clip_factor = factor
            else:
                clip_([p], grad_norm([p]), 2.0)
            optimizer.step()
            assert optimizer.clip_factor is None  # it holds for one step
        results.append(p.detach().clone())
    assert torch.equal(*results)


def test_norm_that_is_not_finite_is_seen():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, float("nan"), 2.0])
    assert grad_norm([p]).isnan()
    p.grad = torch.tensor([1.0, float("inf"), 2.0])
    assert grad_norm([p]).isinf()


def test_build_optimizer():
    groups = parameter_groups(small_model(), DECAY)
    assert isinstance(build_optimizer("lamb", copy.deepcopy(groups), lr=LR), Lamb)
    adamw = build_optimizer("adamw", groups, lr=LR, betas=(0.9, 0.98), eps=1e-8)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [g["weight_decay"] for g in adamw.param_groups] == [DECAY, 0.0]
    assert all((g["betas"], g["eps"]) == ((0.9, 0.98), 1e-8) for g in adamw.param_groups)
    with pytest.raises(BadInput, match=r"'sgd'.*lamb, adamw"):
        build_optimizer("sgd", groups, lr=LR)
