# SPDX-License-Identifier: Apache-2.0
"""Mask searches in training: loss, gradients, checkpoints, files, refusals; the table's rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks import preset, presets, resolve
from bertbench.benchmarks.sparse_bert.benchmark import SparseBert
from bertbench.benchmarks.sparse_bert.task import MASK, MaskFiles, SearchTask
from bertbench.common.cli.main import main
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.search import searched_attention
from bertbench.common.model.ops import Ops
from bertbench.common.model.weights import export_state_dict, load_pretrained
from bertbench.common.results.validate import validate
from bertbench.common.training.checkpoint import resolve as newest
from bertbench.common.training.events import RunSummary
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults

TINY = (
    "--synthetic --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --global_batch 4"
    " --intermediate_size 32 --vocab_size 64 --max_seq_length 16 --max_position_embeddings 16"
    " --max_predictions_per_seq 3 --backend cpu_ref --num_threads 1 --precision fp32"
).split()


def tiny(*flags: str) -> SearchTask:
    settings = resolve("sparse_bert_mini", [*TINY, "--kernels", "plain", *flags])
    benchmark = SparseBert()
    benchmark.check(settings)
    source = benchmark.prepare(settings)
    task = benchmark.build(settings, CpuRef(), World(), source)
    assert isinstance(task, SearchTask)
    return task


def step(task: SearchTask, size: int, passes: int) -> dict[str, float]:
    """Do one step over a made-up batch of ``size`` x ``passes``; return its metrics."""
    batch = task.made_up_step(size, passes)
    plan = task.plan(resolve("sparse_bert_mini", TINY))
    backend = CpuRef()
    scaler = backend.grad_scaler("fp32", 1.0)
    sums, _ = train_step(
        task, task.model, batch, backend, World(), plan, scaler, Faults(backend.device)
    )
    return task.metrics(dict(zip(task.sum_names, sums.tolist(), strict=True)))


@pytest.mark.parametrize("penalty", [("--lamb", "1e-3", "--target_sparsity", "None"), ()])
def test_the_penalty_is_one_for_the_step_however_it_is_split(penalty: tuple[str, ...]) -> None:
    found = [step(tiny(*penalty), 4 // passes, passes) for passes in (1, 2, 4)]
    for other in found[1:]:
        assert other["penalty"] == pytest.approx(found[0]["penalty"], rel=1e-6)
    first = found[0]
    parts = first["mlm_loss"] + first["nsp_loss"] + first["penalty"]
    assert first["loss"] == pytest.approx(parts)
    task = tiny(*penalty)
    search = task._search
    if penalty:
        assert first["penalty"] == pytest.approx(1e-3 * float(search().detach().sum()))
    else:
        weight = task.recipe.target_weight
        assert first["penalty"] == pytest.approx(float(search.hinge(weight).detach()))
    ratio = task.mask_now().sparsity_ratio(16)
    assert first["sparsity_ratio"] == pytest.approx(ratio, abs=1e-6)


def test_a_step_learns_the_mask_and_draws_anew() -> None:
    task = tiny()
    search = task._search
    before, drawn = search.scores.detach().clone(), search().detach()
    step(task, 4, 1)
    assert int(search.step) == 1
    assert not torch.equal(search.scores, before)
    assert not torch.equal(search().detach(), drawn)
    group = next(
        g for g in task.optimizer.param_groups if any(p is search.scores for p in g["params"])
    )
    assert group["weight_decay"] == 0


def test_layers_share_a_mask_or_have_their_own() -> None:
    for flag, count in (("--no_search_per_layer", 1), ("--search_per_layer", 2)):
        task = tiny(flag)
        assert len(task.mask_now().layers) == count
        step(task, 2, 1)
        masks = {id(layer.attention_mask) for layer in task.model.encoder.layers}
        assert len(masks) == 2  # slices of one or two masks
        first, second = (layer.attention_mask.detach() for layer in task.model.encoder.layers)
        assert torch.equal(first, second) == (count == 1)


def test_evaluation_is_that_of_the_exported_mask() -> None:
    """The search's evaluation, and that of a model under the exported mask, give the same sums."""
    task = tiny()
    with torch.no_grad():
        task._search.scores.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
    task.model.eval()
    batch = task.made_up_step(3, 1).micro_batches[0]
    sums = dict(zip(task.sum_names, task.eval_sums(task.model, batch).tolist(), strict=True))
    mask = task.mask_now()
    for layer in task.model.encoder.layers:
        layer.attention_mask = torch.from_numpy(mask.layer(0, 16))
    with torch.no_grad():
        out = super(type(task.model), task.model).forward(batch)
    assert sums["mlm_loss"] == pytest.approx(float(out.mlm_loss), rel=1e-5)
    assert sums["density"] == pytest.approx(3 * mask.nnz(16) / 256)
    assert sums["penalty"] == 0


def test_searched_attention_is_masked_attention_for_zeros_and_ones() -> None:
    task = tiny()
    tokens = task.made_up_step(3, 1, typical=True).micro_batches[0].tokens
    qkv = torch.randn(tokens.num_tokens, 3 * 32, generator=torch.Generator().manual_seed(1))
    bits = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(2)) < 0.4
    bits |= torch.eye(16, dtype=torch.bool)
    grads = []
    for attend, mask in ((Ops().masked_attention, bits), (searched_attention, bits.float())):
        leaf = qkv.clone().requires_grad_()
        out = attend(leaf, tokens, mask, num_heads=2, dropout=0.0)
        out.pow(2).sum().backward()
        grads.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_run_writes_its_mask_and_one_that_goes_on_finds_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["run", "sparse_bert_mini", *TINY, "--json", "--output_dir", str(tmp_path)]
    flags += ["--num_samples_per_checkpoint", "8", "--max_steps", "4", "--search_rate", "30"]
    records: list[Path] = []
    for more in ("", "checkpoints/step_00000002"):
        resume = ["--resume", str(records[0] / more)] if more else []
        assert main([*flags, *resume]) == 0
        records.append(Path(json.loads(capsys.readouterr().out)["record"]))
    masks = [AttentionMask.load(record / MASK) for record in records]
    assert masks[0].hash == masks[1].hash
    assert masks[0].longest == 16
    for record in records:
        assert {problem.severity for problem in validate(record)} == {"note"}
    whole = json.loads((records[0] / "manifest.json").read_text())
    found = whole["extras"]["mask_search"]
    assert found["hash"] == masks[0].hash
    assert found["sparsity_ratio"] == pytest.approx(masks[0].sparsity_ratio(16))
    kernel = whole["extras"]["kernels"]["attention"]
    assert kernel == "searched-unfused-per-sequence"
    assert newest(records[0]).is_dir()


def test_a_search_without_a_step_has_no_mask(tmp_path: Path) -> None:
    task = tiny()
    files = MaskFiles(tmp_path, task)
    summary = RunSummary(status="failed", reason="", step=0, samples=0)
    files.close(summary)
    assert list(tmp_path.iterdir()) == [] and "mask_search" not in task.results()
    step(task, 4, 1)
    files.close(summary)
    assert (tmp_path / MASK).is_file() and task.results()["mask_search"]["file"] == MASK


def test_a_mask_that_cannot_meet_its_target_is_noted() -> None:
    (note,) = tiny("--target_sparsity", "0.9").closing_notes()  # a window of 46 of 256 entries
    assert "0.8203, below --target_sparsity 0.9" in note
    assert tiny("--target_sparsity", "0.8").closing_notes() == []
    assert tiny("--lamb", "1e-3", "--target_sparsity", "None").closing_notes() == []


def test_weights_of_a_search_are_a_bert_s(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    task = tiny()
    state = export_state_dict(task.model)
    assert not any("search" in name for name in state)
    file = tmp_path / "w.safetensors"
    save_file({n: t.clone() for n, t in state.items() if "decoder.weight" not in n}, file)
    other = tiny("--search", "unstructured")
    before = other._search.scores.detach().clone()
    report = load_pretrained(other.model, file, require="all")
    assert not report.missing
    assert torch.equal(before, other._search.scores)


def test_each_row_of_the_table_is_a_recipe() -> None:
    found = {n.removeprefix("sparse_bert_"): p for n, p in presets().items() if "sparse_bert" in n}
    searched = {n: p.recipe for n, p in found.items() if n.startswith("dam")}
    assert {(r.search, r.lamb) for r in searched.values()} == {
        (kind, lamb) for kind in ("structured", "unstructured") for lamb in (1e-4, 1e-3, 1e-2, 0.1)
    }
    ratios = {
        "strided": 70.4, "fixed": 72.7, "longformer": 88.7, "logsparse": 89.8, "bigbird": 93.2,
        "star": 96.1,
    }  # fmt: skip
    for name, ratio in ratios.items():
        mask = AttentionMask.of(found[name].recipe.attention_mask)
        assert 100 * mask.sparsity_ratio(128) == pytest.approx(ratio, abs=0.05)
    assert found["dense"].recipe.attention_mask is None
    assert found["dense"].recipe.search is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lamb", "1e-4"), "one of --lamb and --target_sparsity"),
        (("--target_sparsity", "None"), "one of --lamb and --target_sparsity"),
        (("--search", "None"), "is of a mask search: give --search"),
        (("--attention_mask", "star"), "leave one of them out"),
        (("--target_sparsity", "1"), "target_sparsity"),
        (("--search_block", "17"), "blocks of at most its tokens"),
        (("--search_globals", "0+16"), "must be from 0 to 15"),
        (("--search_globals", "0,3"), r"tokens joined by \+"),
        (("--compile", "inductor"), "a mask search is not compiled"),
        (("--division", "closed"), "--division closed"),
    ],
)
def test_what_cannot_be_searched_is_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tiny(*flags)


def test_the_division_is_open_even_for_mlperfs_own_model() -> None:
    large = preset("mlperf_large_256").recipe
    settings = resolve("sparse_bert_mini", TINY)
    own = {name: getattr(large, name) for name in ("model", "initial_mlm_accuracy")}
    settings = replace(settings, recipe=replace(settings.recipe, **own))
    assert SparseBert().division(settings) == "open"


def test_ranks_draw_the_same_mask() -> None:
    masks = [tiny("--seed", "7")._search().detach() for _ in range(2)]
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], tiny("--seed", "8")._search().detach())
    assert np.isin(masks[0].numpy(), (0, 1)).all()
