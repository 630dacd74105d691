# SPDX-License-Identifier: Apache-2.0
"""tools/bench_squad.py: the peer is the same model on the same batches; runs go on; the sums."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import squad_files
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import bench_squad
from bench import squad_features, squad_quality
from bench.finetuning import Own, Peer, padded, parts, real_share, undemanding, unpadded
from bench.squad_quality import Quality, answer_peer, limited, show, summary, train_peer
from bench.squad_speed import compare, share_of_all, typical
from bench.squad_speed import show as speed_table

from bertbench.benchmarks.bert_squad import data
from bertbench.benchmarks.bert_squad.data import made_up_features
from bertbench.benchmarks.bert_squad.recipes import PRESETS
from bertbench.benchmarks.bert_squad.stream import collate
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import BadInput
from bertbench.common.training.checkpoint import Checkpoints
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults

TINY = (
    *("--backend", "cpu_ref", "--precision", "fp32", "--kernels", "plain", "--synthetic"),
    *("--starts_from", "random", "--vocab_size", "60", "--hidden_size", "32"),
    *("--num_hidden_layers", "2", "--num_attention_heads", "2", "--intermediate_size", "48"),
    *("--hidden_dropout", "0", "--attention_dropout", "0", "--global_batch", "4"),
    *("--max_grad_norm", "1e-5", "--initializer_range", "0.2"),
)


@pytest.fixture
def own(monkeypatch) -> Iterator[Own]:
    pytest.importorskip("transformers", reason="transformers ([compare]) is absent")
    monkeypatch.setattr(data, "SYNTHETIC", (64, 60))
    demanded = torch.are_deterministic_algorithms_enabled()
    try:
        yield Own(squad_quality.RECIPE, TINY)
    finally:
        torch.use_deterministic_algorithms(demanded)


def batch_of(lengths: list[int]):
    return collate(made_up_features(lengths, 60), np.arange(len(lengths)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("room", [None, 20])
def test_peer_answers_as_ours(own: Own, attention: str, room: int | None) -> None:
    batch = batch_of([17, 3, 9])
    peer = Peer(own, attention)
    peer.model.eval()
    own.task.model.eval()
    with torch.no_grad():
        ours = own.task.model(batch)
        theirs = unpadded(peer.answer(padded(batch, room)), batch)
    assert ours.abs().max() > 0.5
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_peer_learns_as_ours(own: Own) -> None:
    """Without padding and dropout both losses are one; so is what clipping and AdamW make of it."""
    batch = batch_of([12] * 4)
    step = own.task.made_up_step(4, 1)
    step = type(step)(micro_batches=(batch,), num_samples=4, num_tokens=48, position={})
    peer = Peer(own, "eager")
    scaler = own.backend.grad_scaler("fp32", 1.0)
    before = own.task.model.qa_outputs.weight.detach().clone()
    for number in (30, 31):
        for group in own.task.optimizer.param_groups:
            group["lr"] = own.task.learning_rate(number)
        sums, norm = train_step(
            own.task, own.task.model, step, own.backend, own.world, own.plan, scaler,
            Faults(own.backend.device),
        )  # fmt: skip
        loss = peer.train_step([padded(batch)], number)
        # To so little that Adam's epsilon, too, shows in the outcome.
        assert norm > own.plan.max_grad_norm, "clipping would not be tested"
        torch.testing.assert_close(loss, sums[0] / 4, atol=1e-5, rtol=1e-5)
    after = own.task.model.qa_outputs.weight.detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(peer.model.qa_outputs.weight.detach(), after, atol=1e-6, rtol=1e-4)


def test_parts_are_the_batch_with_less_padding(own: Own) -> None:
    """The same gradients' sum (but for the padding in the softmax: none here) and answers."""
    batch = batch_of([5, 12, 12, 3, 9, 12, 5, 8, 11])
    whole = padded(batch)
    seen = list(parts(whole))
    assert [part["input_ids"].shape for _, part in seen] == [(4, 8), (4, 12), (1, 12)]
    assert torch.cat([rows for rows, _ in seen]).tolist() == [3, 0, 6, 7, 4, 8, 1, 2, 5]
    for rows, part in seen:
        for name, x in part.items():
            expected = whole[name][rows]
            assert torch.equal(x, expected if x.dim() == 1 else expected[:, : x.shape[1]]), name
    peer = Peer(own, "eager")
    peer.model.eval()
    with torch.no_grad():
        at_once = peer.answer(whole)
        for rows, part in seen:
            torch.testing.assert_close(
                peer.answer(part), at_once[rows, : part["input_ids"].shape[1]], atol=1e-5, rtol=1e-4
            )
    even = padded(batch_of([12] * 8))
    losses = [
        Peer(own, "eager").train_step(inputs, 30)
        for inputs in ([even], [part for _, part in parts(even)])
    ]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)


def test_peer_goes_on_within_a_run(own: Own, tmp_path, monkeypatch) -> None:
    """Stopped and gone on, dropout and all, it ends as if it had not been stopped."""
    monkeypatch.setattr(squad_quality, "SAVE_EVERY_S", 0.0)
    same = {"seed": 1}

    def begin() -> Peer:
        torch.manual_seed(2)
        peer = Peer(own, "eager")
        for module in peer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        return peer

    def quiet(text: str) -> None: ...

    straight = begin()
    whole = Checkpoints(tmp_path / "whole", keep=1)
    expected = train_peer(own, straight, whole, same, quiet)
    assert whole.latest().name == f"step_{own.task.total_steps:08d}"

    broken, saved = begin(), Checkpoints(tmp_path / "broken", keep=1)
    step, number = broken.train_step, own.task.total_steps // 2

    def stop(inputs, at: int):
        if at == number:
            raise KeyboardInterrupt
        return step(inputs, at)

    broken.train_step = stop
    with pytest.raises(KeyboardInterrupt):
        train_peer(own, broken, saved, same, quiet)
    with pytest.raises(BadInput, match="other files or options"):
        train_peer(own, begin(), saved, {"seed": 2}, quiet)
    said: list[str] = []
    again = begin()
    found = train_peer(own, again, saved, same, said.append)
    assert said[0] == f"resumes after step {number}"
    assert found["final_loss"] == expected["final_loss"]
    assert (expected["resumed"], found["resumed"]) == (False, True)
    assert "s," not in squad_quality.run_line({"exact_match": 1.0, "f1": 2.0})
    for (name, value), other in zip(
        straight.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert train_peer(own, again, saved, same, quiet)["final_loss"] == expected["final_loss"]
    own.task.eval_batches = lambda: [batch_of([5, 12, 3, 9, 8, 7]), batch_of([4])]
    logits = [answer_peer(own, peer, quiet)["logits"] for peer in (straight, again)]
    assert logits[0].shape == (48, 2)
    assert np.array_equal(*logits)


def test_peer_is_free_of_our_determinism(own: Own) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    with undemanding():
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()


def test_padding() -> None:
    batch = batch_of([5, 2])
    inputs = padded(batch)
    tokens: Tokens = batch.tokens
    assert inputs["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert inputs["input_ids"][1].tolist() == [*tokens.input_ids[5:].tolist(), 0, 0, 0]
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(unpadded(inputs["input_ids"][..., None], batch)[:, 0], tokens.input_ids)
    assert real_share([batch]) == 0.7


def test_chosen_batches_stand_for_all() -> None:
    shares = np.arange(1, 9) * 10  # eight batches of two: 100 and 10, 20, ... tokens
    lengths = np.stack([np.full(8, 100), shares], 1)[::-1].reshape(-1)
    rows = typical(lengths, 2, 4)
    assert rows.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert typical(lengths, 2, 100).tolist() == list(range(16))
    assert typical(np.array([7, 8, 9]), 4, 1).tolist() == [0, 1, 2]
    assert share_of_all(np.array([100, 50, 10, 10, 3]), 2) == pytest.approx(170 / 220)


def test_rates_and_ratios() -> None:
    seconds = {"own": [1.0, 2.0, 1.0], "a": [3.0, 5.0, 3.0], "b": [4.0, 4.0, 4.0], "c": [0.1] * 3}
    found = compare(seconds, 12, ["a", "b"])
    assert found["peer"] == "a"
    assert found["over"]["a"] == {"median": 3.0, "least": 2.5, "most": 3.0}
    assert found["sequences_per_second"]["own"] == {"median": 12.0, "least": 6.0, "most": 12.0}
    assert found["ok"]
    assert not compare(seconds, 12, ["c"])["ok"]
    about = {"batch": 4, "batches": 3, "real_share": 0.5, "real_share_of_all": 0.6}
    shown = speed_table({"training": found | about, "inference": found | about | {"ok": None}})
    assert "| a | 4.0 (2.4-4.0) | 3.00 (2.50-3.00), goal 2.5: reached |" in shown
    assert "3.00 (2.50-3.00), overestimated" in shown


@pytest.mark.parametrize("number", [1, 3, 7, 10])
def test_a_trial_takes_that_many_questions(tmp_path, number: int) -> None:
    content = {"data": [
        {"paragraphs": [{"context": "x", "qas": [{"id": f"{p}{i}"} for i in range(5)]}]}
        for p in "ab"
    ]}  # fmt: skip
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(content))
    cut = json.loads(limited(whole, number, tmp_path / "cut.json").read_text())
    asked = [q["id"] for a in cut["data"] for p in a["paragraphs"] for q in p["qas"]]
    assert len(asked) == len(set(asked)) == number
    assert all(p["qas"] for a in cut["data"] for p in a["paragraphs"])


def score(f1: float) -> dict[str, float]:
    return {"exact_match": f1 / 2, "f1": f1, "seconds": 1.0}


def test_stopped_runs_go_on(tmp_path, monkeypatch) -> None:
    file = tmp_path / "squad.json"
    file.write_text("{}")
    ran = []

    def run(side):
        def one(self, flags, *rest):
            seed = int(flags[flags.index("--seed") + 1])
            if len(ran) == 3:
                raise KeyboardInterrupt
            ran.append((seed, side))
            return score(80.0 + seed + (side == "own"))

        return one

    monkeypatch.setattr(Quality, "own_run", run("own"))
    monkeypatch.setattr(Quality, "_peer", run("peer"))
    options = {
        "train": file, "predict": file, "folder": tmp_path / "out", "precision": "bf16",
        "attention": "eager", "threads": 1, "limit": None, "seeds": (1, 2),
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        Quality(**options).run(lambda text: None)
    assert ran == [(1, "own"), (1, "peer"), (2, "own")]
    with pytest.raises(BadInput, match="another attention"):
        Quality(**(options | {"attention": "sdpa"}))
    ran.clear()
    content = Quality(**options).run(lambda text: None)
    assert ran == [(2, "peer")]
    assert content["summary"]["f1"]["by_seed"] == [1.0, 1.0]
    assert json.loads((tmp_path / "out" / "quality.json").read_text()) == content
    assert "| mean | 41.25 | 40.75 | 82.50 | 81.50 | +1.00 |" in show(content)


def test_features_of_both_sides_are_the_same_and_counted_once(tmp_path, monkeypatch) -> None:
    made = [("ten one ten one the", [{"question": "one ten"}, {"question": "the"}])]
    path = tmp_path / "made.json"
    path.write_text(json.dumps(squad_files.content(made)))
    source = SimpleNamespace(vocab=squad_files.VOCAB, recipe=PRESETS["squad_mini"].recipe)
    monkeypatch.setattr(squad_features, "find_source", lambda settings: source)
    clock = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, 8.0, 0.0, 2.0]))
    monkeypatch.setattr(squad_features.time, "process_time", lambda: next(clock))
    found = squad_features.rates(path, 5, 2)
    assert found["features"] == 2
    assert found["features_per_cpu_second"] == {
        "own": 2.0, "plain Python": 0.25, "plain Python that remembers words": 1.0
    }  # fmt: skip
    assert found["over"] == {"plain Python": 8.0, "plain Python that remembers words": 2.0}
    assert found["ok"]
    assert "| plain Python | 0 | 8.0, goal 5: reached |" in squad_features.show(found)
    monkeypatch.setattr(squad_features.squad_reference, "wordpieces", lambda *_: ["one"])
    with pytest.raises(AssertionError, match="features differ"):
        squad_features.rates(path, 5, 1)


def test_only_whole_pairs_are_compared() -> None:
    runs = {"1": {"own": score(80.0), "peer": score(82.0)}, "2": {"own": score(99.0)}}
    found = summary(runs)
    assert found["seeds"] == 1
    assert found["f1"]["difference"] == -2.0
    assert not found["ok"]
    assert summary({"2": runs["2"]}) == {"seeds": 0}


def test_a_run_that_fails_is_told(tmp_path, monkeypatch) -> None:
    file = tmp_path / "squad.json"
    file.write_text("{}")
    quality = Quality(
        train=file, predict=file, folder=tmp_path / "out", precision="bf16", attention="eager",
        threads=1, limit=None, seeds=(1,),
    )  # fmt: skip
    script = tmp_path / "fails"
    script.write_text('#!/bin/sh\necho \'{"error": "no such weights"}\'\nexit 2\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(BadInput, match="exit code 2: no such weights"):
        quality.run(lambda text: None)


def test_without_transformers_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_squad, "peer_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_squad.py", "speed"])
    assert bench_squad.main() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "bertbench[compare]" in told.err
