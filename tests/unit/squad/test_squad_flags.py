# SPDX-License-Identifier: Apache-2.0
"""Every flag of the reference SQuAD scripts is mapped, noted or refused, and the last one wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_squad import flags
from bertbench.benchmarks.bert_squad.flags import translate
from bertbench.benchmarks.bert_squad.recipes import PRESETS, SquadOptions, SquadRecipe
from bertbench.benchmarks.bert_squad.reference_flags import REFERENCE
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput, Unsupported

# Name -> a value it takes, or None for a switch. Sources: the argument parsers of run_squad.py in
# DeepLearningExamples (729963dd) and in ModelZoo (afc077c, and 53f1190 for the last two).
NVIDIA = {
    "bert_model": "bert-large-uncased", "output_dir": "/o", "init_checkpoint": "/c.pt",
    "vocab_file": "/v.txt", "config_file": "CONFIG", "train_file": "/t.json",
    "predict_file": "/p.json", "max_seq_length": "384", "doc_stride": "128",
    "max_query_length": "64", "do_train": None, "do_predict": None, "do_eval": None,
    "train_batch_size": "32", "predict_batch_size": "8", "learning_rate": "5e-5",
    "num_train_epochs": "3.0", "max_steps": "-1.0", "warmup_proportion": "0.1",
    "n_best_size": "20", "max_answer_length": "30", "verbose_logging": None, "no_cuda": None,
    "seed": "42", "gradient_accumulation_steps": "2", "do_lower_case": None, "local_rank": "-1",
    "fp16": None, "amp": None, "loss_scale": "0", "version_2_with_negative": None,
    "null_score_diff_threshold": "0.0", "log_freq": "50", "json-summary": "/dllogger.json",
    "eval_script": "/evaluate.py", "use_env": None, "skip_checkpoint": None,
    "disable-progress-bar": None, "skip_cache": None, "cache_dir": "/cache", "profile": None,
}  # fmt: skip
ENFLAME = {
    "device": "gpu", "workers": "8", "skip_steps": "5", "print_freq": "20", "use_apex": None,
    "json_summary": "logger.json", "weight_decay": "0.01", "drop_last": None,
}  # fmt: skip
EVERY = {**NVIDIA, **ENFLAME}

ENFLAME_COMMAND = """--device=npu --train_batch_size=8 --predict_batch_size=8 --num_train_epochs=2
--max_steps=-1 --learning_rate=3.0e-05 --skip_steps=5 --print_freq=20 --do_train --do_eval
--do_predict --do_lower_case --bert_model=bert-large-uncased --max_seq_length=384 --doc_stride=128
--seed=1 --init_checkpoint=d/checkpoint/w.pt --train_file=d/squad/train-v1.1.json
--predict_file=d/squad/dev-v1.1.json --eval_script=d/squad/squad_evaluate-v1.1.py
--vocab_file=vocab/vocab --config_file=CONFIG --output_dir=models"""
NVIDIA_COMMAND = """--init_checkpoint=c.pt --do_train --train_file=t.json --train_batch_size=32
--do_predict --predict_file=p.json --predict_batch_size=32 --eval_script=e.py --do_eval
--do_lower_case --bert_model=bert-large-uncased --learning_rate=4.6e-5 --warmup_proportion=0.2
--seed=1 --num_train_epochs=2.0 --max_seq_length=384 --doc_stride=128 --output_dir=o
--vocab_file=v.txt --config_file=CONFIG --max_steps=-1.0 --fp16"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """bert_config.json of BERT-large, as Enflame and Google ship it."""
    return write_config(tmp_path)


def write_config(folder: Path, **changes: Any) -> Path:
    content = {
        "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 4096,
        "max_position_embeddings": 512, "num_attention_heads": 16, "num_hidden_layers": 24,
        "type_vocab_size": 2, "vocab_size": 30522,
    }  # fmt: skip
    path = folder / "bert_config.json"
    path.write_text(json.dumps(content | changes))
    return path


def settings(
    name: str, argv: str, monkeypatch: pytest.MonkeyPatch, world: int = 1
) -> tuple[Settings, SquadRecipe, SquadOptions]:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    found = resolve(name, argv.split())
    assert isinstance(found.recipe, SquadRecipe)
    assert isinstance(found.run, SquadOptions)
    return found, found.recipe, found.run


def test_list_is_complete() -> None:
    assert len(NVIDIA) == 41
    assert len({name.replace("-", "_") for name in EVERY}) == 48


@pytest.mark.parametrize("name", EVERY)
def test_every_reference_flag_is_known(name: str, config: Path) -> None:
    value = EVERY[name]
    argv = [f"--{name}"] if value is None else [f"--{name}", value.replace("CONFIG", str(config))]
    own, notes = translate(argv, PRESETS["squad_large"].recipe, 1)  # type: ignore[arg-type]
    assert own or notes, "ignored silently"
    for word in own:
        if word.startswith("--"):
            assert word[2:].removeprefix("no_") in flags.OWN


def test_every_note_and_refusal_names_a_reference_flag() -> None:
    assert set(REFERENCE) <= {name.replace("-", "_") for name in EVERY}


@pytest.mark.parametrize(
    ("name", "world"), [("squad_large_enflame", 8), ("squad_large_enflame_1", 1)]
)
def test_enflames_command_is_the_recipe_named_after_it(
    name: str, world: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ENFLAME_COMMAND.replace("CONFIG", str(config))
    found, recipe, run = settings(name, argv, monkeypatch, world)
    assert recipe == PRESETS[name].recipe
    assert (found.impl.precision, found.impl.eval_batch_size) == ("fp32", 8)
    assert (run.backend, run.seed, run.skip_steps, run.log_freq) == ("npu", 1, 5, 20)
    assert run.do_train and run.do_predict and run.do_eval
    assert run.eval_script == Path("d/squad/squad_evaluate-v1.1.py")
    assert not any("the model has" in note for note in found.notes), "it is the same model"


@pytest.mark.parametrize(("name", "world"), [("squad_large", 8), ("squad_large_4", 4)])
def test_nvidias_command(
    name: str, world: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = NVIDIA_COMMAND.replace("CONFIG", str(config))
    found, recipe, _ = settings(name, argv, monkeypatch, world)
    assert recipe.model == PRESETS["squad_large"].recipe.model  # type: ignore[attr-defined]
    assert recipe.model.gelu == "tanh", "the file's gelu stands for either"
    assert (recipe.global_batch, recipe.max_steps) == (32 * world, None)
    assert found.impl.precision == "fp16"
    assert (recipe == PRESETS[name].recipe) == (world == 8)


@pytest.mark.parametrize(
    ("argv", "own"),
    [
        ("--max_steps -1.0", "--max_steps None"),
        ("--max_steps 50.0", "--max_steps 50"),
        ("--json-summary a --json_summary b", "--json_summary b"),
        ("--fp16 --amp", "--precision amp"),
        ("--amp --fp16", "--precision fp16"),
        ("--device CPU", "--backend cpu"),
        ("--device auto", "--backend auto"),
        ("--device GPU", "--backend gpu"),
        ("--no_cuda", "--backend cpu_ref"),
        ("--do_lower_case", "--lowercase"),
        ("--do_lower_case --no_lowercase", "--no_lowercase"),
        ("--version_2_with_negative", "--v2"),
        ("--log_freq 50 --print_freq 20", "--log_freq 20"),
        ("--print_freq=0", "--log_freq 2147483647"),
        ("--train_batch_size 8", "--global_batch 16"),
        (
            "--train_batch_size 8 --gradient_accumulation_steps 4",
            "--global_batch 16 --micro_batch 2",
        ),
        ("--gradient_accumulation_steps 8", "--micro_batch 16"),
        ("--init_checkpoint c.pt", "--init_checkpoint c.pt"),
        ("--do_predict --do_eval", "--do_predict --do_eval --no_do_train"),
        ("--do_predict", "--do_predict --no_do_train --no_do_eval"),
        ("--do_train", "--do_train --no_do_predict --no_do_eval"),
        ("--do_eval", "--do_eval --no_do_train --do_predict"),
        ("--no_do_train", "--no_do_train"),
        ("--no_do_predict", "--no_do_predict --no_do_eval"),
        ("--do_train --do_predict --do_eval", "--do_train --do_predict --do_eval"),
        ("--seed 1 -h", "--help"),
    ],
)
def test_translation(argv: str, own: str) -> None:
    got, _ = translate(argv.split(), PRESETS["squad_large"].recipe, 2)  # type: ignore[arg-type]
    assert " ".join(got) == own


def test_a_checkpoint_that_is_named_is_what_training_starts_from() -> None:
    argv = ["--init_checkpoint", "c.pt"]
    own, _ = translate(argv, PRESETS["squad_mini"].recipe, 1)  # type: ignore[arg-type]
    assert own == [*argv, "--starts_from", "checkpoint"]
    argv = ["--starts_from", "random", *argv]
    assert translate(argv, PRESETS["squad_mini"].recipe, 1)[0] == argv  # type: ignore[arg-type]


def test_the_model_is_the_configuration_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_config(tmp_path, hidden_size=768, num_hidden_layers=12, hidden_act="gelu_new",
                         num_attention_heads=12, intermediate_size=3072)  # fmt: skip
    argv = f"--config_file {small} --num_hidden_layers 3"
    found, recipe, run = settings("squad_large_enflame", argv, monkeypatch)
    model = recipe.model
    assert (model.hidden_size, model.num_attention_heads, model.intermediate_size) == (
        768,
        12,
        3072,
    )
    assert model.num_hidden_layers == 3, "a field that is named stays"
    assert (model.vocab_size, model.gelu) == (30528, "tanh")
    assert run.bert_config_path == small
    assert any(note.startswith(f"{small}: the model has ") for note in found.notes)
    assert any("hidden_size 768" in note for note in found.notes)
    _, recipe, _ = settings("squad_mini", f"--config_file {tmp_path}", monkeypatch)
    assert recipe.model.vocab_size == 30522, "as in the file: the recipe has no padding"
    with pytest.raises(BadInput, match="cannot be read"):
        translate(["--config_file", str(tmp_path / "none.json")], recipe, 1)


def test_nothing_is_translated_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = settings("squad_large", "--amp --do_predict --workers 8", monkeypatch)
    assert any(note.startswith("--amp: ") and "--fp16" in note for note in found.notes)
    assert any(note.startswith("--do_predict: only this is done") for note in found.notes)
    assert any(note.startswith("--workers: ") for note in found.notes)


@pytest.mark.parametrize("argv", ["--loss_scale 1024", "--loss_scale=128.0"])
def test_a_fixed_loss_scale_is_refused(argv: str) -> None:
    with pytest.raises(Unsupported, match=r"--loss_scale.*--init_loss_scale"):
        translate(argv.split(), None, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--train_batch_sise 8", "did you mean --train_batch_size"),
        ("--do 1", "ambiguous: --do_eval, --do_lower_case, --do_predict, --do_train, --doc_stride"),
        ("--max_steps 7.5", "not a whole number"),
        ("--predict_batch_size inf", "not a whole number"),
        ("--device", "needs a value"),
        ("--do_train=perhaps", "is a switch"),
        ("--gradient_accumulation_steps 3", "which 3 does not divide"),
        ("train", "not a flag"),
    ],
)
def test_bad_input_names_the_fix(argv: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        translate(argv.split(), PRESETS["squad_large"].recipe, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "argv", "clipping"),
    [
        ("squad_large_enflame", "", "none"),
        ("squad_large_enflame", "--amp", "global"),
        ("squad_large_enflame_1", "--fp16", "global"),
        ("squad_large_enflame", "--precision tf32", "none"),
        ("squad_large_enflame", "--amp --gradient_clipping none", "none"),
        ("squad_base", "", "none"),
        ("squad_base", "--amp", "global"),
        ("squad_large", "--amp", "global"),
    ],
)
def test_enflames_script_clips_in_mixed_precision_only(name: str, argv: str, clipping: str) -> None:
    found = resolve(name, argv.split())
    assert found.recipe.gradient_clipping == clipping  # type: ignore[attr-defined]
    assert any("gradients are clipped" in note for note in found.notes) == (
        clipping == "global" and name != "squad_large"
    )


@pytest.mark.parametrize(
    "argv",
    [
        "--predict_batch_size 0", "--predict_batch_size -8", "--skip_steps -1",
        "--learning_rate -1", "--learning_rate nan", "--max_grad_norm 0", "--num_threads 0",
    ],
)  # fmt: skip
def test_values_that_nothing_can_come_of_are_refused_at_once(
    argv: str,
) -> None:
    with pytest.raises(BadInput, match="must be"):
        resolve("squad_mini", argv.split())
