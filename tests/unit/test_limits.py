# SPDX-License-Identifier: Apache-2.0
"""Every number that enters by a flag has a range, and what is out of it is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bertbench import api
from bertbench.benchmarks import preset, presets, resolve
from bertbench.common.cli.main import main
from bertbench.common.config.batch_split import divisors
from bertbench.common.config.limits import ANY, RANGES, check_ranges
from bertbench.common.config.parser import wants_json
from bertbench.common.config.recipe import Recipe, recipe_hash
from bertbench.common.config.reference_flags import fields
from bertbench.common.errors import BadInput

NAMES = ("mini", "squad_mini", "glue_mini", "sparse_bert_mini")


def numbers(name: str) -> list[str]:
    base = preset(name)
    own = fields(*map(type, (base.recipe, base.impl, base.run)))
    kinds = {field: {kind, *typing.get_args(kind)} for field, kind in own.items()}
    return [field for field, found in kinds.items() if found & {int, float}]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range_and_every_preset_is_within(name: str) -> None:
    assert set(numbers(name)) <= RANGES.keys()
    for base in presets().values():
        for part in (base.recipe, base.impl, base.run):
            check_ranges(part)


def test_every_range_is_of_a_number() -> None:
    assert RANGES.keys() == {field for name in NAMES for field in numbers(name)}


OFF_BELOW = (
    *("log_freq", "max_steps", "target_mlm_accuracy"),
    *("eval_iter_samples", "num_samples_per_checkpoint"),
)
"""Flags of the reference scripts that mean "never" or "no limit" where they are 0 or negative."""
FIELDS = [(name, field) for name in NAMES for field in numbers(name)]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_is_out_of_range_is_refused_with_flag_and_range(name: str, field: str) -> None:
    allowed = RANGES[field]
    low, high = allowed.low, allowed.high
    below = [math.nextafter(low, -math.inf), low - 1 - abs(low), -1e30 * 1.1]
    beyond = [math.nextafter(high, math.inf), high * 10 + 1, "nan", "inf", "-inf", "1e400"]
    below = [] if field in OFF_BELOW else below
    for value in (*below, *beyond, "9" * 401, "9" * 5000, "-" + "9" * 400):
        with pytest.raises(BadInput) as caught:
            resolve(name, [f"--{field}={value}"])
        text = str(caught.value)
        assert f"--{field}" in text and len(text) < 300 and "\n" not in text
        assert str(allowed) in text or "not a" in text


def test_the_ends_that_are_left_out() -> None:
    for flag in ("--max_grad_norm 0", "--opt_epsilon 0", "--opt_lamb_beta_1 1", "--max_minutes 0"):
        with pytest.raises(BadInput, match=flag.split()[0]):
            resolve("mini", flag.split())
    for flag in ("--opt_lamb_beta_1 0", "--warmup_proportion 1", "--learning_rate 0", "--seed 0"):
        resolve("mini", flag.split())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 10**400])
def test_a_program_is_refused_as_the_command_line(value: float) -> None:
    with pytest.raises(BadInput, match="--learning_rate"):
        api.run("mini", learning_rate=value, synthetic=True)


@dataclass(frozen=True, kw_only=True)
class Other(Recipe):
    """A recipe of another package, with a number of its own, that forgets its base's checks."""

    ratio: float = 1.0
    rates: tuple[float, ...] = ()
    by_name: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**64])
def test_a_number_without_a_range_must_fit_a_record(value: float) -> None:
    assert "ratio" not in RANGES and value not in ANY
    with pytest.raises(ValueError, match="--ratio"):
        check_ranges(Other(global_batch=1, ratio=value))


def test_no_recipe_with_infinity_or_nan_has_a_hash() -> None:
    """The last line of defence, behind a recipe that does not check itself."""
    recipe_hash(Other(global_batch=1, ratio=2.0))
    for value in (float("nan"), float("-inf")):
        with pytest.raises(BadInput, match="--ratio is"):
            recipe_hash(Other(global_batch=1, ratio=value))
        with pytest.raises(BadInput, match="--rates is"):
            recipe_hash(Other(global_batch=1, rates=(0.1, value)))
        with pytest.raises(BadInput, match="--by_name is"):
            recipe_hash(Other(global_batch=1, by_name={"a": value}))
        model: Any = replace(preset("mini").recipe.model)  # type: ignore[attr-defined]
        object.__setattr__(model, "layer_norm_eps", value)
        inside = dataclasses.make_dataclass(
            "Inside", [("model", Any)], bases=(Other,), kw_only=True, frozen=True
        )
        with pytest.raises(BadInput, match="--layer_norm_eps"):
            recipe_hash(inside(global_batch=1, model=model))


def test_divisors_of_the_largest_batch_take_no_time() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(2**31 - 1) == [1, 2**31 - 1]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        *((words, True) for words in ("--json", "--js", "--j", "--json=true", "--no_json --json")),
        *((words, False) for words in ("", "--", "json", "--json=false", "--json --no-json")),
        *((words, False) for words in ("--json_summary x", "--jsonx", "--json=0")),
    ],
)
def test_an_error_is_json_however_json_is_asked_for(
    capsys: pytest.CaptureFixture[str], words: str, asked: bool
) -> None:
    assert wants_json(words.split()) is asked
    if asked:
        assert main(["run", "glue_mini", *words.split(), "--learning_rate", "nan"]) == 2
        out, err = capsys.readouterr()
        assert json.loads(out)["kind"] == "BadInput"
        assert json.loads(out)["error"].startswith("--learning_rate") and "Traceback" not in err


def test_a_flag_of_another_benchmark_names_it() -> None:
    with pytest.raises(BadInput, match=r"unknown flag --doc_stride.*; it is a flag of bert_squad"):
        resolve("mini", ["--doc_stride", "x"])
    with pytest.raises(BadInput, match="it is a flag of bert_pretraining"):
        resolve("squad_mini", ["--lr_power", "2"])
    with pytest.raises(BadInput) as caught:
        resolve("mini", ["--nonsense_flag", "x"])
    assert "it is a flag of" not in str(caught.value)
