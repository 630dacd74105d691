# SPDX-License-Identifier: Apache-2.0
"""The SQuAD recipes: the forks' values, their differences, and that they are plain data."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bertbench.benchmarks.bert_squad.recipes import (
    PRESETS,
    SquadOptions,
    enflame,
    nvidia,
    nvidia_2021,
)
from bertbench.common.config.recipe import LATER, hash_values, plain, recipe_hash
from bertbench.common.model.config import BERT_LARGE

ROOT = Path(__file__).parents[3]


def test_importing_recipes_and_flags_imports_no_torch() -> None:
    code = (
        "import sys, bertbench.benchmarks.bert_squad.recipes;"
        "import bertbench.benchmarks.bert_squad.launch;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_forks_differ_in_just_this() -> None:
    head, old, theirs = (plain(f(global_batch=8)) for f in (nvidia, nvidia_2021, enflame))
    targets = [recipe.pop("target_f1") for recipe in (head, old, theirs)]
    assert targets == [90.2, 90.6, 90.5]  # 90.68, 91.08 and 91.0 less three times 0.16
    assert PRESETS["squad_large_enflame_1"].recipe.target_f1 == 90.7  # type: ignore[attr-defined]
    assert {k for k in head if head[k] != old[k]} == {"model"}
    assert (head["model"]["gelu"], old["model"]["gelu"]) == ("tanh", "erf")
    assert {k for k in old if old[k] != theirs[k]} == {"gradient_clipping"}
    assert theirs["gradient_clipping"] == "none"
    mixed = replace(enflame(global_batch=8, published_f1=91.08), gradient_clipping="global")
    assert mixed == nvidia_2021(global_batch=8)
    for recipe in (head, old, theirs):
        assert not recipe["bias_correction"]
        assert recipe["schedule_length"] == "examples"
        assert recipe["model"]["vocab_size"] == 30528 == BERT_LARGE.vocab_size


@pytest.mark.parametrize(
    ("name", "batch", "rate", "warmup"),
    [
        ("squad_large", 256, 4.6e-5, 0.2),
        ("squad_large_4", 128, 3e-5, 0.1),
        ("squad_large_1", 32, 3e-5, 0.1),
        ("squad_large_nvidia_2021", 32, 3e-5, 0.1),
        ("squad_large_enflame", 64, 3e-5, 0.1),
        ("squad_large_enflame_1", 8, 3e-5, 0.1),
        ("squad_base", 384, 3e-5, 0.1),
        ("squad_large_sparse_int8", 16, 4e-5, 0.1),
    ],
)
def test_published_hyperparameters(name: str, batch: int, rate: float, warmup: float) -> None:
    preset = PRESETS[name]
    recipe = preset.recipe
    assert (recipe.global_batch, recipe.learning_rate, recipe.warmup_proportion) == (  # type: ignore[attr-defined]
        batch, rate, warmup,
    )  # fmt: skip
    shape = (recipe.max_seq_length, recipe.doc_stride, recipe.max_query_length)  # type: ignore[attr-defined]
    assert shape == (384, 128, 64)
    assert recipe.num_train_epochs == 2.0  # type: ignore[attr-defined]
    assert preset.impl.precision == "fp32"
    assert isinstance(preset.run, SquadOptions)


def test_each_recipe_is_another_benchmark() -> None:
    assert len({recipe_hash(p.recipe) for p in PRESETS.values()}) == len(PRESETS)


def test_the_sparse_int8_recipe_is_that_of_mlperf_inference() -> None:
    recipe = plain(PRESETS["squad_large_sparse_int8"].recipe)
    model = recipe["model"]
    assert (model["vocab_size"], model["gelu"], model["norm_position"]) == (30522, "tanh", "pre")
    assert (model["hidden_size"], model["num_hidden_layers"]) == (1024, 24)
    assert (recipe["schedule"], recipe["schedule_length"]) == ("cosine", "features")
    assert (recipe["weight_sparsity"], recipe["quantization"]) == ("2:4", "int8")
    assert recipe["target_f1"] == pytest.approx(0.99 * 90.874, abs=5e-4)


def test_recipes_from_before_a_field_keep_their_hash() -> None:
    recipe = PRESETS["squad_large"].recipe
    values, inputs = plain(recipe), {"data_hash": "d", "checkpoint_hash": None}
    known = hash_values("SquadRecipe", values, inputs)
    assert known == recipe_hash(recipe, **inputs)
    for name, before in LATER.items():
        assert values.pop(name) == before
        assert hash_values("SquadRecipe", values, inputs) == known
    assert hash_values("SquadRecipe", values | {"schedule": "cosine"}, inputs) != known
    assert hash_values("SquadRecipe", values | {"quantization": "int8"}, inputs) != known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 513}, "max_position_embeddings 512"),
        ({"global_batch": 0}, "at least 1"),
        ({"max_steps": 0}, "at least 1"),
        ({"num_train_epochs": 0.0}, "--no_do_train"),
        ({"num_train_epochs": float("nan")}, "--no_do_train"),
        ({"warmup_proportion": 1.5}, "from 0 to 1"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["squad_large"].recipe, **change)  # type: ignore[arg-type]
