# SPDX-License-Identifier: Apache-2.0
"""tools/bench_glue.py: the peer is the same model on the same batches; the table's sums."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from glue_files import table

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import bench_glue
from bench.finetuning import Own, Peer, padded, real_share, undemanding
from bench.glue_quality import GlueQuality, evaluate, show, summary, train

from bertbench.benchmarks.glue.features import made_up_features
from bertbench.benchmarks.glue.task import collate
from bertbench.common.errors import BadInput
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults

TINY = (
    *("--backend", "cpu_ref", "--precision", "fp32", "--kernels", "plain", "--num_threads", "1"),
    *("--starts_from", "random", "--vocab_size", "19", "--hidden_size", "32"),
    *("--num_hidden_layers", "2", "--num_attention_heads", "2", "--intermediate_size", "48"),
    *("--hidden_dropout", "0", "--attention_dropout", "0", "--global_batch", "4"),
    *("--max_grad_norm", "1e-5", "--initializer_range", "0.2", "--eval_share", "0.5"),
)


@pytest.fixture
def own(tmp_path, vocab) -> Iterator[Own]:
    pytest.importorskip("transformers", reason="transformers ([compare]) is absent")
    pytest.importorskip("sklearn", reason="scikit-learn (the extra glue) is absent")
    names = ("entailment", "neutral", "contradiction")
    rows = [f"{i}|cat {'one ' * (i % 7)}|dog {i}|{names[i % 3]}" for i in range(40)]
    path = table(tmp_path / "train.tsv", "index|sentence1|sentence2|gold_label", rows)
    demanded = torch.are_deterministic_algorithms_enabled()
    try:
        flags = ("--train_file", str(path), "--vocab_file", str(vocab))
        yield Own("glue_mini", [*TINY, *flags])
    finally:
        torch.use_deterministic_algorithms(demanded)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("room", [None, 20])
def test_peer_labels_and_learns_as_ours_however_it_is_padded(own: Own, attention, room) -> None:
    batch = collate(made_up_features([17, 3, 9, 12], 19, 3, pair=True), np.arange(4))
    assert real_share([batch], 20) == 41 / 80
    step = own.task.made_up_step(4, 1)
    step = type(step)(micro_batches=(batch,), num_samples=4, num_tokens=41, position={})
    peer = Peer(own, attention)
    with torch.no_grad(), undemanding():
        ours, theirs = own.task.model(batch), peer.answer(padded(batch, room))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
    scaler = own.backend.grad_scaler("fp32", 1.0)
    before = own.task.model.classifier.weight.detach().clone()
    for number in (1, 2):
        for group in own.task.optimizer.param_groups:
            group["lr"] = own.task.learning_rate(number)
        sums, norm = train_step(
            own.task, own.task.model, step, own.backend, own.world, own.plan, scaler,
            Faults(own.backend.device),
        )  # fmt: skip
        with undemanding():
            loss = peer.train_step([padded(batch, room)], number)
        assert norm > own.plan.max_grad_norm, "clipping would not be tested"
        torch.testing.assert_close(loss, sums[0] / 4, atol=1e-5, rtol=1e-5)
    after = own.task.model.classifier.weight.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(peer.model.classifier.weight.detach(), after, atol=1e-6, rtol=1e-4)


def test_the_peers_run_takes_the_recipes_steps_and_scores_the_held_out_part(own: Own) -> None:
    peer = Peer(own, "eager")
    with undemanding():
        found = train(own, peer, lambda text: None)
        scores = evaluate(own, peer)
    assert 0 < found["final_loss"] < 10
    part = own.task.source.parts[0]
    assert set(scores) == {"mnli"}
    right = scores["mnli"] / 100 * len(part.features)
    assert right == pytest.approx(round(right)) and 0 <= right <= len(part.features)


def runs(*pairs: tuple[float, float]):
    return {
        str(seed): {"own": {"score": a}, "peer": {"score": b}}
        for seed, (a, b) in enumerate(pairs, 1)
    }


def test_means_are_of_seeds_with_both_sides() -> None:
    made = runs((60.0, 61.0), (62.0, 61.5))
    made["3"] = {"own": {"score": 99.0}}
    found = summary(made)
    assert found["own"] == {"seeds": 2, "mean": 61.0, "peer": 61.25, "difference": -0.25}
    assert found["ok"]
    assert not summary(runs((60.0, 61.1)))["ok"]
    assert not summary(runs((61.1, 60.0)))["ok"]
    made = runs((60.0, 61.0))
    made["1"]["own, star"] = {"score": 50.0}
    shown = show({"same": {"task": "mnli"}, "runs": made, "summary": summary(made)})
    assert "| 1 | 60.00 | 61.00 | 50.00 |" in shown
    assert "own - peer, 1 seeds: -1.00, goal within 1: kept" in shown
    assert "own, star - peer, 1 seeds: -11.00" in shown.splitlines()


def test_results_of_other_options_are_not_mixed(tmp_path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("x\n")
    options = {
        "task": "mnli", "train": file, "share": 0.2, "epochs": 1.0, "mask": None,
        "folder": tmp_path / "out", "precision": "fp32", "attention": "eager", "threads": 1,
        "seeds": (1,),
    }  # fmt: skip
    first = GlueQuality(**options)
    first._keep(1, "own", {"score": 1.0})
    assert GlueQuality(**(options | {"mask": "star"})).content["runs"]["1"]["own"]["score"] == 1.0
    with pytest.raises(BadInput, match="another epochs"):
        GlueQuality(**(options | {"epochs": 2.0}))
    with pytest.raises(BadInput, match="no such file"):
        GlueQuality(**(options | {"train": tmp_path / "absent"}))


def test_without_transformers_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_glue, "peer_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_glue.py", "speed", "--train_file", "x"])
    assert bench_glue.main() == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
