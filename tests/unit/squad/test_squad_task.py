# SPDX-License-Identifier: Apache-2.0
"""The order of training, the schedule's length, and the division of both works over ranks."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.bert_squad.cache import StoredFeatures
from bertbench.benchmarks.bert_squad.data import SquadSource, made_up_features
from bertbench.benchmarks.bert_squad.recipes import PRESETS, SquadOptions
from bertbench.benchmarks.bert_squad.stream import FeatureStream, answer_batches, share
from bertbench.benchmarks.bert_squad.task import SquadTask
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.common.model.ops import Ops

NUMBER = 27
MODEL = BertConfig(
    vocab_size=512,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=384,
)


def features(number=NUMBER):
    made = made_up_features(np.random.default_rng(3).integers(4, 30, number), 512)
    made.input_ids[made.offsets[:-1]] = np.arange(number)  # the first token tells which it is
    return made


def stream(start=None, **shape):
    given = {"seed": 7, "global_batch": 8, "micro_batch": 2, "world": 1, "rank": 0} | shape
    return iter(FeatureStream(features(), position=start, **given))


def numbers(step):
    """The features of a rank's step, in order of its micro-batches."""
    return [
        int(i)
        for micro in step.micro_batches
        for i in micro.tokens.input_ids[micro.tokens.cu_seqlens[:-1].long()]
    ]


def take(steps, count):
    with_end = list(itertools.islice(steps, count))
    steps.close()
    return with_end


def test_every_feature_is_trained_once_in_each_epoch():
    seen = [n for step in take(stream(), 28) for n in numbers(step)]
    assert len(seen) == 8 * 28
    # Batches of 8 run across the end of an epoch of 27, within which their order is free.
    for epochs in range(1, 9):
        counts = Counter(seen[: -(-epochs * NUMBER // 8) * 8])
        assert all(epochs <= counts[n] <= epochs + 1 for n in range(NUMBER))
    first, second = seen[:24], seen[27:51]
    assert first != second


def test_the_order_depends_on_seed_and_epoch_only():
    plain = [sorted(numbers(step)) for step in take(stream(), 9)]
    assert [sorted(numbers(s)) for s in take(stream(micro_batch=4), 9)] == plain
    ranks = [take(stream(world=2, rank=rank), 9) for rank in range(2)]
    both = [sorted(numbers(a) + numbers(b)) for a, b in zip(*ranks, strict=True)]
    assert both == plain
    assert [sorted(numbers(s)) for s in take(stream(seed=8), 9)] != plain
    for a, b in zip(*ranks, strict=True):
        assert a.num_samples == 8 and a.position == b.position
        assert sum(m.num_samples for m in a.micro_batches) == 4


@pytest.mark.parametrize("done", [1, 3, 4, 7])
def test_continues_where_a_checkpoint_was(done):
    whole = take(stream(), 12)
    rest = take(stream(start=whole[done - 1].position), 12 - done)
    assert [numbers(s) for s in rest] == [numbers(s) for s in whole[done:]]
    assert [s.position for s in rest] == [s.position for s in whole[done:]]


@pytest.mark.parametrize("change", [{"seed": 8}, {"data": 28}, {"index": 99}, {"epoch": -1}])
def test_a_position_of_another_run_is_refused(change):
    (step,) = take(stream(), 1)
    with pytest.raises(BadInput, match="position"):
        next(stream(start=step.position | change))


def test_ranks_answer_all_features_between_them():
    made = features()
    answered = []
    for rank in range(4):
        rows = share(NUMBER, 4, rank)
        batches = answer_batches(made, rows, 3)
        assert all(b.num_samples == 3 for b in batches[:-1])
        for b in batches:
            answered += b.tokens.input_ids[b.tokens.cu_seqlens[:-1].long()].tolist()
    assert sorted(answered) == list(range(NUMBER))


def task(name="squad_large_enflame_1", stored=(88_641, 87_599), answers=0, origins=None,
         run=None, same_model=True, **changes):  # fmt: skip
    """The preset's task on a model of nothing and data that only has a length."""
    preset = PRESETS[name]
    if same_model:
        preset = replace(preset, recipe=replace(preset.recipe, model=MODEL))
    recipe = replace(preset.recipe, model=MODEL, starts_from="random", **changes)
    train = None
    if stored is not None:
        made = made_up_features([4] * stored[0], 512)
        train = StoredFeatures(
            features=made, num_examples=stored[1], dropped=[], ingredients={}, path=None,
            reused=False,
        )  # fmt: skip
    predict = None
    if answers:
        made = made_up_features([4] * answers, 512)
        predict = StoredFeatures(
            features=made, num_examples=answers, dropped=[], ingredients={}, path=None,
            reused=False,
        )  # fmt: skip
    settings = Settings(
        preset=preset, recipe=recipe, impl=preset.impl, run=run or SquadOptions(),
        origins=origins or {},
    )  # fmt: skip
    source = SquadSource(recipe=recipe, description="made up", train=train, predict=predict)
    return SquadTask(settings, CpuRef(), World(), source), settings


def test_a_schedule_by_examples_ends_before_the_features_do():
    # Facts of the reference at batch 8, one card: 21,898 steps of schedule, 264 more at 0.
    made, settings = task()
    assert made.schedule_steps == 21_898
    assert made.total_steps == 22_161  # theirs 22,162: it does not fill up an epoch's last batch
    assert made.learning_rate(21_898) == made.learning_rate(22_160) == 0
    assert made.learning_rate(21_897) > 0
    assert max(made.learning_rate(s) for s in range(22_161)) == pytest.approx(3e-5, rel=1e-3)
    assert made.plan(settings).max_steps == 22_161
    assert made.plan(settings).max_grad_norm is None  # Enflame's script does not clip

    by_features, _ = task(schedule_length="features")
    assert by_features.schedule_steps == by_features.total_steps == 22_161


def test_eight_cards_have_the_schedule_of_the_reference():
    # int(int(87599 / 32) * 2 / 8), at NVIDIA's 8 x 32
    assert task("squad_large")[0].schedule_steps == 684


def test_a_schedule_without_a_whole_batch_is_refused():
    assert task(stored=(9, 8))[0].schedule_steps == 2
    assert task(stored=(9, 7), schedule_length="features")[0].schedule_steps == 3
    with pytest.raises(BadInput, match=r"7 questions do not fill .* --schedule_length features"):
        task(stored=(9, 7))


def test_the_cosine_falls_from_the_warm_ups_end_to_zero():
    made, _ = task("squad_large_sparse_int8", stored=(1600, 1500), weight_sparsity=None,
                   quantization=None)  # fmt: skip
    assert made.schedule_steps == made.total_steps == 200
    rates = [made.learning_rate(step) / 4e-5 for step in range(201)]
    assert rates[:21] == pytest.approx([step / 20 for step in range(21)])
    # Read off the curve: cos^2 of a quarter turn's share.
    assert [rates[s] for s in (65, 110, 155, 200)] == pytest.approx(
        [0.853553, 0.5, 0.146447, 0], abs=1e-6
    )
    assert all(a > b for a, b in pairwise(rates[20:]))
    still, _ = task("squad_large_sparse_int8", weight_sparsity=None, quantization=None,
                    learning_rate=0.0)  # fmt: skip
    assert still.learning_rate(9_000) == 0
    line, _ = task("squad_large_sparse_int8", stored=(1600, 1500), weight_sparsity=None,
                   quantization=None, schedule="linear")  # fmt: skip
    assert line.learning_rate(65) / 4e-5 == pytest.approx(0.75)


def test_max_steps_ends_training_but_not_the_schedule():
    made, settings = task(max_steps=50)
    assert made.total_steps == 50 and made.schedule_steps == 21_898
    assert made.plan(settings).checkpoint_every_samples == 400


def test_the_target_is_of_scored_answers_to_v1():
    def target(**how):
        made, settings = task(stored=(16, 16), **how)
        return made.plan(settings).target_value, [n for n in made.notes if "target" in n]

    assert target(answers=4) == (90.7, [])
    assert target() == (None, [])  # nothing is answered
    unscored = SquadOptions(do_eval=False)
    assert target(answers=4, run=unscored) == (None, [])
    asked = target(answers=4, run=unscored, target_f1=80.0, origins={"target_f1": "flag"})
    assert asked[0] is None and "without scoring" in asked[1][0]
    assert target(answers=4, same_model=False) == (
        None, ["no target: the recipe's F1 of 90.7 is of another model"]
    )  # fmt: skip
    assert target(answers=4, v2=True) == (
        None, ["no target: the recipe's F1 of 90.7 is of SQuAD v1.1"]
    )  # fmt: skip
    given = {"target_f1": "flag"}
    assert target(answers=4, v2=True, target_f1=80.0, origins=given) == (80.0, [])
    assert target(name="squad_mini", answers=4) == (None, [])


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_says_which_rates_there_will_not_be(skip):
    made, _ = task(stored=(16, 16), answers=24, run=SquadOptions(skip_steps=skip), max_steps=2)
    told = " ".join(n for n in made.notes if "--skip_steps" in n)
    assert ("all 2 steps are skipped" in told) == (skip >= 2)
    assert ("all 3 batches are skipped" in told) == (skip >= 3)


def test_without_training_there_is_no_step():
    made, settings = task(stored=None)
    assert made.plan(settings).max_steps == 0
    assert list(made.train_batches(None)) == []


@pytest.mark.parametrize(
    ("bias_correction", "name"), [(True, "torch-fused adamw"), (False, "torch-fused bert_adam")]
)
def test_the_optimizer_is_the_recipes(bias_correction, name):
    made, _ = task(bias_correction=bias_correction, stored=(16, 16), weight_decay_rate=0.5)
    assert made.facts().kernels["optimizer"] == name
    decayed = {g["weight_decay"]: len(g["params"]) for g in made.optimizer.param_groups}
    vectors = [p for p in made.model.parameters() if p.ndim == 1]
    assert decayed[0.0] == len(vectors)


def test_a_rehearsal_is_of_the_longest_sequences():
    made, _ = task(stored=(16, 16))
    step = made.made_up_step(3, 2)
    assert [m.tokens.lengths for m in step.micro_batches] == [(384,) * 3] * 2
    assert made.made_up_step(1, 1, typical=True).micro_batches[0].tokens.lengths == (192,)


def test_int8_layers_are_refused_in_fp8():
    recipe = replace(PRESETS["squad_mini"].recipe, quantization="int8")
    asked = SimpleNamespace(recipe=recipe, precision="fp8")
    with pytest.raises(BadInput, match="--quantization: fp8 would round again"):
        SquadTask.make_model(asked, Ops())
    asked.precision = "bf16"
    assert SquadTask.make_model(asked, Ops()) is not None
