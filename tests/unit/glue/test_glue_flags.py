# SPDX-License-Identifier: Apache-2.0
"""Both references' command lines are read; each of their flags is mapped, noted or refused."""

from __future__ import annotations

import json

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.glue.flags import REFERENCE, translate
from bertbench.benchmarks.glue.recipes import PRESETS
from bertbench.common.errors import BadInput, Unsupported

RECIPE = PRESETS["glue_mrpc"].recipe
NVIDIA = """--task_name MRPC --do_train --do_eval --do_lower_case --data_dir d/MRPC --bert_model
bert-large-uncased --seed 2 --init_checkpoint c.pt --warmup_proportion 0.1 --max_seq_length 128
--learning_rate 2.4e-5 --num_train_epochs 3 --max_steps -1.0 --vocab_file v --output_dir o --fp16
--train_batch_size=16 --eval_batch_size=16 --gradient_accumulation_steps=2 --local_rank 0
--loss_scale 0"""
HUGGING_FACE = """--task_name sst-2 --do_train --do_eval --do_predict --max_seq_length 128
--per_device_train_batch_size 32 --per_device_eval_batch_size 8 --learning_rate 2e-5
--num_train_epochs 3 --warmup_ratio 0.06 --weight_decay 0.1 --adam_epsilon 1e-8 --adam_beta2 0.98
--output_dir o --overwrite_output_dir --train_file t.tsv --validation_file d.tsv --test_file e.tsv
--logging_steps 50 --pad_to_max_length"""


def test_nvidias_command_line():
    done = resolve("glue_mrpc", NVIDIA.split())
    assert done.recipe.task == "mrpc" and str(done.run.data) == "d/MRPC"
    assert (done.recipe.global_batch, done.impl.micro_batch) == (16, 8)
    assert (done.recipe.learning_rate, done.recipe.max_steps) == (2.4e-5, None)
    assert done.impl.precision == "fp16" and done.run.seed == 2
    assert (done.run.do_train, done.run.do_eval, done.run.do_predict) == (True, True, False)
    assert done.recipe.starts_from == "checkpoint"


def test_hugging_faces_command_line():
    done = resolve("glue_mini", HUGGING_FACE.split())
    assert done.recipe.task == "sst2" and done.run.do_predict
    assert (done.recipe.warmup_proportion, done.recipe.weight_decay_rate) == (0.06, 0.1)
    assert (done.recipe.adam_epsilon, done.recipe.adam_beta_2) == (1e-8, 0.98)
    assert str(done.run.dev_file) == "d.tsv" and done.impl.eval_batch_size == 8
    assert done.run.log_freq == 50


def test_parts_that_are_not_named_are_not_done():
    done = resolve("glue_mini", ["--do_eval", "--init_checkpoint", "c.pt"])
    assert (done.run.do_train, done.run.do_eval) == (False, True)
    assert done.recipe.starts_from == "checkpoint"
    assert any("only this is done" in note for note in done.notes)
    done = resolve("glue_mini", ["--no_do_train"])
    assert (done.run.do_train, done.run.do_eval) == (False, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "bert-base-uncased"], "--init_checkpoint"),
        (["--max_train_samples", "100"], "cut the file"),
        (["--loss_scale", "128"], "fixed loss scale"),
    ],
)
def test_refusals_name_the_alternative(flags, message):
    with pytest.raises(Unsupported, match=message):
        translate(flags, RECIPE)


@pytest.mark.parametrize(
    "flags",
    [
        ["--task_name", "wnli"],
        ["--max_seq_length", "600"],
        ["--max_seq_length", "4"],
        ["--eval_share", "1.0"],
        ["--target_score", "0"],
    ],
)
def test_values_that_no_run_can_have(flags):
    with pytest.raises(BadInput):
        resolve("glue_mini", flags)


def test_every_reference_flag_leads_to_a_field(tmp_path):
    config = tmp_path / "1"
    config.write_text(json.dumps(RECIPE.model.as_huggingface()))
    for name, meaning in REFERENCE.items():
        value = str(config) if name.startswith("config") else "1"
        given = [f"--{name}", *([value] if meaning.takes_value else [])]
        try:
            words, notes = translate(given, RECIPE, world=1)
        except Unsupported as refused:
            assert name in str(refused)
        else:
            assert words or any(name in note for note in notes)
