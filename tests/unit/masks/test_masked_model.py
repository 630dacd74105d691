# SPDX-License-Identifier: Apache-2.0
"""Masks in the model: equal to dense attention with minus infinity, recorded and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertbench.backends.attention_costs import AttentionCosts
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.selfcheck import attention_why_not
from bertbench.benchmarks import preset, resolve
from bertbench.benchmarks.bert_pretraining.mlperf import why_not_closed
from bertbench.common.config.recipe import hash_values, plain, recipe_hash
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.masks.attach import RecipeMask, check_same, from_tensors, to_tensors
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse
from bertbench.common.model.config import BertConfig
from bertbench.common.model.heads import BertForPreTraining
from bertbench.common.model.ops import ComputeTypeOps, Ops
from bertbench.common.results.protocol import _mask
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.loop import train
from bertbench.common.training.progress import Progress, restore
from bertbench.common.training.summary import summarise
from tests.contract.tiny_task import tiny_task

LENGTHS = (11, 7, 40, 2)
HEADS = 4
CPU = torch.device("cpu")


def masked_reference(qkv: Tensor, lengths: tuple[int, ...], mask: np.ndarray) -> Tensor:
    """Dense attention with minus infinity on the masked scores, head by head: [T, H]."""
    hidden = qkv.shape[1] // 3
    size = hidden // HEADS
    rows, begin = [], 0
    for n in lengths:
        part = qkv[begin : begin + n]
        begin += n
        columns = []
        for head in range(HEADS):
            q, k, v = (part[:, at + head * size :][:, :size] for at in (0, hidden, 2 * hidden))
            scores = q @ k.T / size**0.5
            bits = torch.from_numpy(mask[head % len(mask), :n, :n].copy())
            columns.append(scores.masked_fill(~bits, float("-inf")).softmax(-1) @ v)
        rows.append(torch.cat(columns, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("ops", [Ops(), ComputeTypeOps(None), ComputeTypeOps(None, fused=False)])
@pytest.mark.parametrize(
    "heads",
    [
        ["star"],
        ["bigbird", "fixed", "star:block=8", "logsparse"],
        ["dense"],
    ],
    ids="-".join,
)
def test_masked_attention_is_dense_attention_with_minus_infinity(
    make_batch: Callable[..., PretrainingBatch], ops: Ops, heads: list[str]
) -> None:
    mask = AttentionMask((tuple(map(parse, heads)),)).layer(0, 40)
    tokens = make_batch(LENGTHS, vocab_size=120).tokens
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 3 * 64, generator=generator)
    weights = torch.randn(sum(LENGTHS), 64, generator=generator)
    results = []
    for attention in (
        lambda x: ops.masked_attention(
            x, tokens, torch.from_numpy(mask), num_heads=HEADS, dropout=0.0
        ),
        lambda x: masked_reference(x, LENGTHS, mask),
    ):
        leaf = qkv.clone().requires_grad_()
        out = attention(leaf)
        (out * weights).sum().backward()
        results.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    dense = ops.attention(qkv, tokens, num_heads=HEADS, dropout=0.0)
    assert torch.allclose(results[0][0], dense, atol=1e-5) is (heads == ["dense"])


@pytest.mark.parametrize("ops", [Ops(), ComputeTypeOps(None)])
def test_a_device_that_masks_wrongly_is_found(ops: Ops) -> None:
    assert attention_why_not(ops, CPU, torch.float32, masked=True) is None

    class Shifted(Ops):
        def masked_attention(self, qkv: Tensor, tokens: Any, mask: Tensor, **rest: Any) -> Tensor:
            return super().masked_attention(qkv, tokens, mask.roll(1, 0), **rest)

    why = attention_why_not(Shifted(), CPU, torch.float32, masked=True)
    assert why is not None
    assert "its output differs" in why


CONFIG = BertConfig(
    vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
    intermediate_size=96, max_position_embeddings=40,
)  # fmt: skip


def test_each_layer_of_a_model_has_its_mask(make_batch: Callable[..., PretrainingBatch]) -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(CONFIG, Ops()).eval()
    batch = make_batch(LENGTHS, vocab_size=120)
    outputs = {}
    for first, second in (("dense", "dense"), ("star", "dense"), ("dense", "star")):
        mask = AttentionMask(((parse(first),), (parse(second),)))
        RecipeMask(mask, 40).attach(model, CPU)
        with torch.no_grad():
            outputs[first, second] = model(batch).mlm_loss
    for layer in (model.encoder.layers[0], model.encoder.layers[1]):
        layer.attention_mask = None
    with torch.no_grad():
        assert torch.allclose(model(batch).mlm_loss, outputs["dense", "dense"], atol=1e-4)
    assert len({round(float(v), 4) for v in outputs.values()}) == 3
    RecipeMask(AttentionMask.of("star"), 40).attach(model, CPU)
    first, second = model.encoder.layers
    assert first.attention_mask is second.attention_mask
    assert not [name for name in model.state_dict() if "attention_mask" in name]
    with pytest.raises(BadInput, match="no attention to mask"):
        RecipeMask(AttentionMask.of("star"), 40).attach(torch.nn.Linear(2, 2), CPU)


def test_native_kernels_hand_masked_attention_over_and_say_so() -> None:
    masked = RecipeMask(AttentionMask.of("star"), 128)

    class Native(Ops):
        @property
        def kernels(self) -> dict[str, str]:
            return {"attention": "c-fused", "matmul": "onednn"}

    assert masked.kernels(Native()) == {
        "attention": "masked-unfused-per-sequence",
        "attention_passed_over": "c-fused: computes no masks",
        "matmul": "onednn",
    }
    fused = masked.kernels(ComputeTypeOps(None))
    assert fused["attention"] == "masked-fused-sdpa-per-sequence"
    assert "attention_passed_over" not in fused
    costs = AttentionCosts(sequences=1, dense_ms=2.0, layers=({"a": 4.0, "b": 3.0},))
    assert "sparsity ratio 96.13 % at 128 tokens" in masked.note(Ops(), costs)
    found = masked.facts(costs)["attention_mask"]
    assert found["sparsity_ratio"] == pytest.approx(1 - 634 / 128**2)
    assert found["cost"]["chosen"] == ["b"]


# -- recipes ---------------------------------------------------------------------------------------


def test_scores_left_out_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    bits = (rng.random((2, 9, 9)) < 0.4) | np.eye(9, dtype=bool)
    mask = RecipeMask(
        AttentionMask([list(bits), [parse("fixed")]]), 9
    )  # of 2 heads, and 1 for both
    both = [*bits, parse("fixed").bits(9), parse("fixed").bits(9)]
    for length in range(1, 10):
        wanted = sum(int((~head[:length, :length]).sum()) for head in both)
        assert mask.left_out([length], layers=2, heads=2) == wanted
    assert mask.left_out([9, 1, 9], layers=2, heads=2) == 2 * wanted


def test_recipes_without_a_mask_keep_their_hashes() -> None:
    recipe = preset("mini").recipe
    before = {k: v for k, v in plain(recipe).items() if k != "attention_mask"}
    assert recipe_hash(recipe) == hash_values("PretrainingRecipe", before, {})


def test_extended_positions_count_and_their_absence_does_not() -> None:
    recipe = preset("mini").recipe
    extended = dataclasses.replace(recipe, extend_positions="tile")
    before = {k: v for k, v in plain(recipe).items() if k != "extend_positions"}
    assert recipe_hash(recipe) == hash_values("PretrainingRecipe", before, {})
    assert recipe_hash(extended) != recipe_hash(recipe)


def test_a_mask_counts_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    AttentionMask.of("star").save(file)
    hashes = set()
    for text in ("star", "star:window=1", str(file), "star:window=2"):
        recipe = dataclasses.replace(preset("mini").recipe, attention_mask=text)
        found = RecipeMask.of(recipe)
        assert found is not None
        hashes.add(recipe_hash(recipe, attention_mask=found.mask.hash))
    assert len(hashes) == 2
    assert recipe_hash(preset("mini").recipe) not in hashes


@pytest.mark.parametrize("name", ["mini", "squad_mini"])
def test_any_recipe_takes_a_mask_for_its_model(name: str, tmp_path: Path) -> None:
    settings = resolve(name, ["--attention_mask", "star:window=3"])
    assert settings.origins["attention_mask"] == "flag"
    found = RecipeMask.of(settings.recipe)
    assert found is not None
    assert found.length == settings.recipe.max_seq_length  # type: ignore[attr-defined]
    assert RecipeMask.of(resolve(name, []).recipe) is None
    AttentionMask(((parse("star"),) * 5,)).save(tmp_path / "heads.json")
    AttentionMask(((np.ones(64, dtype=bool),),)).save(tmp_path / "short.json")
    for text, part in (
        ("stars", "known: dense"),
        (str(tmp_path / "heads.json"), "has 5 heads, the model"),
        (str(tmp_path / "short.json"), "is of 64 tokens, and sequences have up to"),
        ("absent.json", "No such file"),
    ):
        with pytest.raises(BadInput, match=part):
            RecipeMask.of(dataclasses.replace(settings.recipe, attention_mask=text))


def test_a_sparse_model_is_not_mlperf_s() -> None:
    recipe = preset("mlperf_large_256").recipe
    assert not why_not_closed(recipe)  # type: ignore[arg-type]
    sparse: Any = dataclasses.replace(recipe, attention_mask="star")
    assert why_not_closed(sparse) == ["attention is dense"]


@pytest.mark.parametrize(
    ("text", "found", "part"),
    [
        (None, None, None),
        ("star", AttentionMask.of("star").hash, None),
        ("saved.json", "0" * 64, None),
        ("star", AttentionMask.of("star:window=2").hash, "not the recipe's, star"),
        ("star", None, "not the recipe's"),
        ("saved.json", None, "not the recipe's"),
        (None, "0" * 64, "not the recipe's"),
        ("stars", "0" * 64, "unknown pattern"),
    ],
)
def test_a_record_s_mask_is_its_recipe_s(text: Any, found: Any, part: Any) -> None:
    inputs = {} if found is None else {"attention_mask": found}
    problems = list(_mask(text, {"recipe_hash": "0" * 16, "inputs": inputs}))
    assert bool(problems) == (part is not None)
    assert all(kind == "error" and part in why for kind, _, why in problems)


# -- checkpoints -----------------------------------------------------------------------------------


def test_checkpoints_keep_the_mask() -> None:
    bits = np.tril(np.ones((6, 6), dtype=bool))
    mask = AttentionMask(((bits, parse("star")), (parse("bigbird"),)))
    saved = to_tensors(mask)
    assert from_tensors(saved).hash == mask.hash
    check_same(mask, saved)
    check_same(None, None)
    for other, tensors in (
        (None, saved),
        (mask, None),
        (AttentionMask.of("star"), saved),
    ):
        with pytest.raises(BadInput, match="not this run's"):
            check_same(other, tensors)
    for damaged in (
        {},
        {"layers": torch.zeros(3, dtype=torch.uint8)},
        {**saved, "0": saved["0"][0]},
    ):
        with pytest.raises(BadInput, match=r"damaged|is bool \[n"):
            from_tensors(damaged)


def test_a_task_trains_with_its_mask_records_it_and_resumes_with_no_other(tmp_path: Path) -> None:
    backend = CpuRef()
    flags = ("--precision", "fp32", "--kernels", "plain", "--attention_mask")
    task, plan = tiny_task(backend, *flags, "star")
    plan = dataclasses.replace(plan, max_steps=2, checkpoint_every_samples=16)
    where = Checkpoints(tmp_path)
    run = train(task, backend=backend, world=World(), plan=plan, observers=[], checkpoints=where)
    window = run.train_window
    assert 0 < window.effective_flops < window.model_flops
    assert {m.name for m in summarise(run, whole=True, init_s=None, e2e_s=1.0)} >= {
        "model_flops_per_second", "effective_flops_per_second",
    }  # fmt: skip
    batch = next(task.train_batches(None)).micro_batches[0]
    model, star = task.recipe.model, AttentionMask.of("star")
    left_out = sum(n * n - star.nnz(n) for n in batch.tokens.lengths)
    left_out *= model.num_hidden_layers * model.num_attention_heads
    size = model.hidden_size // model.num_attention_heads
    assert task.model_flops(batch) - task.effective_flops(batch) == 3 * 4 * size * left_out
    facts = task.facts()
    ratio = 1 - parse("star").bits(64).mean()
    assert facts.own["attention_mask"]["sparsity_ratio"] == pytest.approx(ratio)
    assert facts.kernels["attention"] == "masked-unfused-per-sequence"
    cost = facts.own["attention_mask"]["cost"]
    assert cost["chosen"] == ["unfused-per-sequence"]
    assert cost["dense_ms"] > 0
    assert any("attention mask star" in note and "measured" in note for note in task.notes)
    groups, state = where.load()
    assert from_tensors(groups["attention_mask"]).hash == AttentionMask.of("star").hash
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    same, _ = tiny_task(backend, *flags, "star:window=1")
    restore(same, scaler, backend, World(), (groups, state), Progress())
    for name, value in same.model.state_dict().items():
        assert torch.equal(value, groups["model"][name])
    other, _ = tiny_task(backend, *flags, "star:window=2")
    with pytest.raises(BadInput, match="not this run's"):
        restore(other, scaler, backend, World(), (groups, state), Progress())
