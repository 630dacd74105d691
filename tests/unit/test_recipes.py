# SPDX-License-Identifier: Apache-2.0
"""The shipped recipes, MLPerf's rules for them, and how a batch is split."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.mlperf import log_values, why_not_closed
from bertbench.benchmarks.bert_pretraining.recipes import PRESETS, mlperf_eval_interval
from bertbench.common.cli.main import main
from bertbench.common.config.batch_split import split
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.errors import BadInput
from bertbench.common.mlperf.compliance import check_log
from bertbench.common.mlperf.log import MlperfLog, bert_tensors
from bertbench.common.training.events import EvalEvent

LARGE = [name for name in PRESETS if name.startswith(("mlperf", "deepspark"))]


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_parses_describes_and_dry_runs(name, capsys):
    settings = resolve(name, [])
    assert settings.recipe == PRESETS[name].recipe
    assert main(["describe", name, "--json"]) == 0
    assert recipe_hash(settings.recipe) in capsys.readouterr().out
    run = ["run", name, "--backend", "cpu_ref", "--dry_run"]
    assert main([*run, "--synthetic"]) == 0
    # Without data a dry run is refused as the run would be; mini's data is fetched by the run.
    assert main(run) == (0 if name == "mini" else 2)


def test_hashes_tell_recipes_and_inputs_apart():
    hashes = {recipe_hash(p.recipe) for p in PRESETS.values()}
    assert len(hashes) == len(PRESETS)
    mini = PRESETS["mini"].recipe
    assert recipe_hash(mini, data="a") != recipe_hash(mini, data="b")
    assert recipe_hash(mini) == recipe_hash(replace(mini))


@pytest.mark.parametrize(
    ("batch", "interval"),
    # MLPerf training rules' formula; the values of facts published with the submissions
    [(64, 150_000), (448, 150_000), (1536, 150_000), (3072, 175_000), (4608, 200_000),
     (8192, 225_000)],
)  # fmt: skip
def test_evaluation_interval(batch, interval):
    assert mlperf_eval_interval(batch) == interval


def test_large_recipes_keep_the_closed_rules_and_others_say_why_not():
    for name in LARGE:
        assert why_not_closed(PRESETS[name].recipe) == []
    assert len(why_not_closed(PRESETS["mini"].recipe)) >= 4
    changed = replace(PRESETS["mlperf_large_448"].recipe, target_mlm_accuracy=0.7)
    assert why_not_closed(changed) == ["the target is 0.72"]


@pytest.mark.parametrize("ruleset", ["1.0.0", "3.0.0", "3.1.0", "4.0.0", "4.1.0", "5.0.0"])
def test_a_converged_run_with_mlperfs_recipe_makes_a_closed_log(tmp_path, ruleset):
    recipe = PRESETS["mlperf_large_448"].recipe
    log = MlperfLog(
        tmp_path / "result_0.txt", division="closed", org="org", platform="platform",
        status="onprem", seed=1, values=log_values(recipe, 2, 0), weights=bert_tensors(24),
    )  # fmt: skip
    log.init_start()
    log.init_stop()
    log.run_start(step=0, samples=0)
    for samples, accuracy in ((150_080, 0.38), (300_160, 0.7203)):
        log.eval_start(step=samples // 448, samples=samples)
        log.on_eval(
            EvalEvent(
                step=samples // 448,
                samples=samples,
                target_metric="mlm_accuracy",
                metrics={"mlm_accuracy": accuracy, "num_samples": 10_000.0, "loss": 1.3},
                target_value=0.72,
                reached=accuracy >= 0.72,
                eval_s=1.0,
                time_s=2.0,
            )
        )
    log.run_stop(step=670, samples=300_160, status="success")
    assert check_log(tmp_path / "result_0.txt", ruleset, "closed") == []


def test_split_takes_the_largest_fitting_micro_batch_or_what_is_asked():
    recipe = PRESETS["mlperf_large_448"].recipe
    chosen = split(recipe.global_batch, None, 56, 8)
    assert (chosen.micro_batch, chosen.accumulation) == (56, 1)
    assert split(recipe.global_batch, None, 20, 8).micro_batch == 14
    assert split(recipe.global_batch, 7, 56, 8).accumulation == 8
    with pytest.raises(BadInput, match="possible: 1, 2, 4, 7, 8, 14, 28, 56"):
        split(recipe.global_batch, 5, 56, 8)
    with pytest.raises(BadInput, match="NPROC"):
        split(recipe.global_batch, None, 56, 9)
