# SPDX-License-Identifier: Apache-2.0
"""The search of a mask: its sampler, gradients, penalties, determinism and results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.search import (
    MaskSearch,
    Temperature,
    masked_softmax,
    straight_through,
)

KINDS = [
    {"structured": True},
    {"structured": True, "block": 4},
    {"structured": False},
    {"structured": False, "symmetric": False},
    {"structured": False, "block": 4},
]


def search(length: int = 16, heads: int = 3, **options: object) -> MaskSearch:
    made = MaskSearch(length, heads, **options)  # type: ignore[arg-type]
    with torch.no_grad():  # far enough from 0 for both outcomes
        made.scores.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return made


# -- the sampler -----------------------------------------------------------------------------------


def reference_sample(alphas: Tensor, gumbels: Tensor, tau: float) -> Tensor:
    """SparseBERT's sampler: a one-hot of two channels, straight-through, channel 0 is keep."""
    soft = torch.softmax((alphas + gumbels) / tau, -1)
    hard = torch.nn.functional.one_hot(soft.argmax(-1), 2).to(soft.dtype)
    return (hard - soft.detach() + soft)[..., 0]


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_sampler_is_the_reference_s(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = torch.randn(4, 128, 2, generator=generator, requires_grad=True)
    exponential = torch.empty(4, 128, 2).exponential_(generator=generator)
    gumbels = -torch.log(exponential + 1e-5)
    weights = torch.randn(4, 128, generator=generator)
    logits = (alphas[..., 0] - alphas[..., 1]).detach().requires_grad_()
    theirs = reference_sample(alphas, gumbels, tau)
    ours = straight_through(logits, gumbels[..., 0] - gumbels[..., 1], tau)
    assert set(ours.detach().unique().tolist()) == {0.0, 1.0}
    assert torch.equal(ours > 0.5, theirs > 0.5)
    (theirs * weights).sum().backward()
    (ours * weights).sum().backward()
    assert alphas.grad is not None
    assert logits.grad is not None
    assert torch.allclose(logits.grad, alphas.grad[..., 0], atol=1e-6)
    assert torch.allclose(logits.grad, -alphas.grad[..., 1], atol=1e-6)


def test_a_structured_mask_is_the_reference_s_expansion() -> None:
    made = search(window=0)
    keep = made._keep().detach()[0]
    mask = made().detach()[0]
    i, j = np.indices((16, 16))
    assert torch.equal(mask, keep[:, abs(i - j)])
    assert torch.equal(mask, mask.transpose(1, 2))


def test_cells_are_kept_with_the_logit_s_probability() -> None:
    made = MaskSearch(64, 4, seed=3)
    for logit in (-1.0, 0.0, 2.0):
        torch.nn.init.constant_(made.scores, logit)
        kept = []
        for _ in range(40):
            kept.append((made.logits + made.noise() > 0).float().mean())
            made.advance()
        expected = torch.sigmoid(torch.tensor(logit))
        assert abs(torch.stack(kept).mean() - expected) < 0.02


def test_half_of_a_new_search_is_kept_on_average() -> None:
    made = MaskSearch(128, 12)
    densities = []
    for _ in range(20):
        densities.append(float(made().detach().mean()))
        made.advance()
    assert abs(np.mean(densities) - 0.5) < 0.03
    assert np.std(densities) > 1e-4


# -- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_masks_have_the_shape_of_their_cells(kind: dict) -> None:
    made = search(length=18, **kind)
    mask = made().detach().numpy()
    assert mask.shape == (1, 3, 18, 18)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    block = kind.get("block", 1)
    i, j = np.indices((18, 18))
    if kind["structured"]:
        groups = abs(i - j) // block
    elif kind.get("symmetric", True):
        groups = np.minimum(i // block, j // block) * 100 + np.maximum(i // block, j // block)
    else:
        groups = i // block * 100 + j // block
    assert len(np.unique(groups)) == made.logits.shape[2]
    for group in np.unique(groups):
        values = mask[..., groups == group]
        assert (values == values[..., :1]).all()


def test_layers_of_their_own() -> None:
    mask = search(layers=2)().detach()
    assert mask.shape == (2, 3, 16, 16)
    assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_protected_entries_are_always_kept(kind: dict) -> None:
    made = search(window=1, globals=(0, 15), **kind)
    torch.nn.init.constant_(made.scores, -20.0)
    i, j = np.indices((16, 16))
    for mask in (made().detach().numpy(), made.eval()().detach().numpy()):
        assert (mask[..., abs(i - j) <= 1] == 1).all()
        assert (mask[..., [0, 15], :] == 1).all()
        assert (mask[..., [0, 15]] == 1).all()
        assert mask.mean() < 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_query_is_left_without_a_key(kind: dict) -> None:
    made = search(**kind)
    for value in (-20.0, None):
        if value is not None:
            torch.nn.init.constant_(made.scores, value)
        else:
            with torch.no_grad():
                made.scores.normal_(mean=-2.0)
        made.export()  # AttentionMask refuses empty rows, also of shorter sequences
        for step in range(5):
            made.train()
            mask = made().detach()
            made.advance()
            for n in (2, 3, 9, 16):
                assert mask[..., :n, :n].any(-1).all(), step
    torch.nn.init.constant_(made.scores, -20.0)
    with torch.no_grad():
        made.scores.view(1, 3, -1)[..., int(made.cells[1, 0])] = 20.0
    if kind == {"structured": True}:  # a neighbour is enough: the diagonal may go
        assert not made.eval()().diagonal(dim1=2, dim2=3).any()


# -- gradients and penalties -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_attention_and_penalties_reach_every_logit(kind: dict) -> None:
    made = search(ratio=0.9, **kind)
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(1, 3, 16, 16, generator=generator)
    values = torch.randn(1, 3, 16, 8, generator=generator)
    losses = {
        "attention": lambda: (masked_softmax(scores, made()) @ values).pow(2).sum(),
        "penalty": lambda: made.penalty(1e-4),
        "hinge": made.hinge,
    }
    for name, loss in losses.items():
        made.zero_grad()
        loss().backward()
        grad = made.scores.grad
        assert grad is not None
        # In float32 a few samples are so far from 0 that their sigmoid is flat.
        assert (grad != 0).float().mean() > 0.97, name
        assert torch.isfinite(grad).all()


def test_the_softmax_is_that_of_minus_infinity() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 9, 9, generator=generator) * 5
    mask = (torch.rand(2, 3, 9, 9, generator=generator) < 0.4).float()
    mask.diagonal(dim1=2, dim2=3).fill_(1)
    weights = torch.randn(2, 3, 9, 9, generator=generator)
    results = []
    for probabilities in (
        lambda s: masked_softmax(s, mask),
        lambda s: s.masked_fill(mask == 0, float("-inf")).softmax(-1),
    ):
        leaf = scores.clone().requires_grad_()
        out = probabilities(leaf)
        (out * weights).sum().backward()
        results.append((out.detach(), leaf.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-6)
    huge = scores.half() * 100
    assert torch.isfinite(masked_softmax(huge, mask)).all()


def test_the_penalty_is_the_reference_s_sum_and_does_not_overflow_in_fp16() -> None:
    made = MaskSearch(128, 12, window=None)
    torch.nn.init.constant_(made.scores, 20.0)
    with torch.autocast("cpu", dtype=torch.float16):
        value = made.half().penalty(1e-1)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(0.1 * 12 * 128 * 128)
    made = search(globals=(0,))
    assert float(made.penalty(1.0)) == float(made().sum())


def test_the_penalty_s_gradient_is_that_of_the_expected_sum() -> None:
    made = search()
    made.penalty(0.5).backward()
    grad = made.scores.grad
    made.zero_grad()
    (0.5 * (torch.sigmoid(made.logits) * made.counts).sum()).backward()
    assert grad is not None
    assert torch.equal(grad, made.scores.grad)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hinge_meets_its_target(seed: int, structured: bool) -> None:
    """A toy objective for which more is better, with a learning rate that decays as a recipe's."""
    target = 0.88
    made = MaskSearch(32, 8, structured=structured, window=0, ratio=target, seed=seed)
    value = torch.rand(8, 32, 32, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam([made.scores], lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        loss = made.hinge(20.0) - (made()[0] * value).mean()
        loss.backward()
        optimizer.step()
        made.advance()
    assert abs(made.export().sparsity_ratio(32) - target) < 0.01
    assert float(made.hinge().detach()) < 0.01
    sampled = []
    for _ in range(50):
        sampled.append(float(made().detach().mean()))
        made.advance()
    assert abs(1 - np.mean(sampled) - target) < 0.02, "training sees the sparsity of the export"


def test_the_hinge_is_of_the_expected_mask() -> None:
    made = search(ratio=0.7, window=0, globals=(3,))
    kept = torch.sigmoid(made.logits.detach())[0, :, made.cells]
    i, j = np.indices((16, 16))
    kept[:, (i == j) | (i == 3) | (j == 3)] = 1
    away = abs(float(kept.mean()) - 0.3)
    assert float(made.hinge(2.0).detach()) == pytest.approx(2 * away, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.8])
def test_the_most_probable_cells_meet_the_ratio(kind: dict, ratio: float) -> None:
    made = search(64, ratio=ratio, window=1, **kind)
    mask = made.eval()()[0]
    assert ratio <= 1 - float(mask.mean()) <= ratio + 0.02
    open_ = ~made.protected[made.cells]
    logits = made.logits.detach()[0][:, made.cells]
    kept, dropped = logits[(mask == 1) & open_], logits[(mask == 0) & open_]
    if dropped.numel():
        assert kept.min() >= dropped.max()


# -- determinism and results -----------------------------------------------------------------------


def test_ranks_and_micro_batches_draw_the_same_and_steps_differ() -> None:
    ranks = [search(seed=5), search(seed=5)]
    torch.manual_seed(1)
    first = ranks[0]()
    torch.manual_seed(2)
    assert torch.equal(first, ranks[1]())
    assert torch.equal(first, ranks[0]())
    ranks[0].advance()
    assert not torch.equal(first, ranks[0]())
    assert not torch.equal(first, search(seed=6)())
    state = torch.get_rng_state()
    ranks[0]()
    assert torch.equal(state, torch.get_rng_state()), "dropout's generator is not touched"


def test_a_checkpoint_continues_the_search() -> None:
    schedule = Temperature(start=2.0, end=0.5, steps=10)
    made = search(temperature=schedule, seed=5)
    for _ in range(3):
        made.advance()
    again = MaskSearch(16, 3, temperature=schedule, seed=5)
    assert set(made.state_dict()) == {"scores", "step"}
    again.load_state_dict(made.state_dict())
    assert again.temperature.at(int(again.step)) == made.temperature.at(3)
    assert torch.equal(again(), made())


def test_the_temperature_falls_by_a_constant_factor() -> None:
    schedule = Temperature(start=4.0, end=1.0, steps=2)
    assert [schedule.at(s) for s in range(4)] == pytest.approx([4.0, 2.0, 1.0, 1.0])
    assert Temperature().at(7) == 1.0
    made = search(temperature=schedule)
    grads = []
    for _ in range(2):
        made.zero_grad()
        made().sum().backward()
        grads.append(made.scores.grad.clone())
        made.temperature = Temperature(start=0.5)
    assert not torch.allclose(*grads)


def test_evaluation_is_deterministic_and_is_what_is_exported() -> None:
    made = search(layers=2).eval()
    first = made()
    made.advance()
    assert torch.equal(first, made())
    exported = made.train().export()
    assert made.training
    for layer in range(2):
        assert (exported.layer(layer, 16) == first[layer].bool().numpy()).all()
    assert exported.is_toeplitz(16)
    assert all(head.ndim == 1 for head in exported.layers[0])
    assert float(made.density()) == pytest.approx(float(first.mean()))
    with_globals = search(globals=(0,)).export()
    assert all(head.ndim == 2 for head in with_globals.layers[0])


@pytest.mark.parametrize(
    "options",
    [{"length": 1}, {"heads": 0}, {"layers": 0}, {"block": 17}, {"block": 0}, {"globals": (16,)}],
)
def test_wrong_sizes_are_refused(options: dict) -> None:
    with pytest.raises(BadInput):
        search(**options)


def test_wrong_schedules_and_targets_are_refused() -> None:
    with pytest.raises(BadInput, match="above 0"):
        Temperature(start=0.0)
    with pytest.raises(BadInput, match="target sparsity ratio is 1"):
        search(ratio=1.0)
    with pytest.raises(BadInput, match="without a target"):
        search().hinge()


def test_the_pages_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "sparse-attention.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for snippet in snippets:
        exec(snippet.replace("range(900)", "range(2)"), {})
    assert AttentionMask.load(tmp_path / "mask.json").heads == 2
    assert AttentionMask.load(tmp_path / "searched.json").heads == 12
