# SPDX-License-Identifier: Apache-2.0
"""Files of a run: found or refused before anything is trained, and identified by content."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from bertbench.benchmarks.bert_squad.data import find_source
from bertbench.benchmarks.bert_squad.recipes import PRESETS
from bertbench.common.config.recipe import Settings
from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig

MODEL = BertConfig(
    vocab_size=8,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=32,
)
UNCASED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "one"]
CASED = [*UNCASED[:5], "Cat", "Dog", "one"]


def content(text="one cat", answers=1):
    answer = {"text": "one", "answer_start": 0}
    qas = [{"id": "q", "question": "?", "answers": [answer] * answers}]
    return {"version": "1.1", "data": [{"paragraphs": [{"context": text, "qas": qas}]}]}


@pytest.fixture
def root(tmp_path):
    """Enflame's layout."""
    for folder in ("squad", "checkpoint"):
        (tmp_path / folder).mkdir()
    (tmp_path / "squad" / "train-v1.1.json").write_text(json.dumps(content()))
    (tmp_path / "squad" / "dev-v1.1.json").write_text(json.dumps(content("one dog", answers=3)))
    (tmp_path / "vocab.txt").write_text("\n".join(UNCASED))
    torch.save({"model": {}}, tmp_path / "checkpoint" / "weights.pt")
    return tmp_path


def settings(root, recipe=None, **run):
    preset = PRESETS["squad_large_enflame"]
    recipe = replace(preset.recipe, model=MODEL, max_seq_length=32, **(recipe or {}))
    run = replace(preset.run, data=root, cache_dir=root / "cache", **run)
    return Settings(preset=preset, recipe=recipe, impl=preset.impl, run=run)


def test_a_folder_in_enflames_layout_is_enough(root):
    source = find_source(settings(root))
    assert source.init_checkpoint == root / "checkpoint" / "weights.pt"
    assert source.predict_file == root / "squad" / "dev-v1.1.json"
    assert (source.train.num_examples, len(source.predict.features)) == (1, 1)
    assert source.train.features.start is not None and source.predict.features.start is None
    assert source.vocab == UNCASED and source.has_eval
    assert find_source(settings(root)).train.reused


def test_the_hash_is_of_both_files_and_the_vocabulary(root):
    hashes = [find_source(settings(root)).hash()]
    for name, text in (
        ("squad/train-v1.1.json", json.dumps(content("one cat ?"))),
        ("squad/dev-v1.1.json", json.dumps(content("one cat ?"))),
        ("vocab.txt", "\n".join([*UNCASED[:-1], "!"])),
    ):
        (root / name).write_text(text)
        hashes.append(find_source(settings(root)).hash())
    hashes.append(find_source(settings(root, do_predict=False)).hash())
    assert len(set(hashes)) == 5
    (root / "squad").rename(root / "v1.1")
    (root / "squad").mkdir()
    for file in (root / "v1.1").iterdir():
        file.rename(root / "squad" / file.name)
    assert find_source(settings(root)).hash() == hashes[3]  # places do not count
    assert find_source(settings(root, synthetic=True)).hash() is None


def test_parts_of_the_work_need_only_their_files(root):
    (root / "squad" / "train-v1.1.json").unlink()
    with pytest.raises(BadInput, match=r"lacks\n  train-v1.1.json \(--train_file\)"):
        find_source(settings(root))
    assert find_source(settings(root, do_train=False)).train is None
    (root / "squad" / "dev-v1.1.json").unlink()
    with pytest.raises(BadInput, match=r"dev-v1.1.json \(--predict_file\)"):
        find_source(settings(root, do_train=False))


def test_weights_are_named_chosen_or_left_out(root):
    (root / "checkpoint" / "weights.pt").unlink()
    with pytest.raises(BadInput, match="the weights to start from"):
        find_source(settings(root))
    random = {"starts_from": "random"}
    assert find_source(settings(root, random)).init_checkpoint is None
    with pytest.raises(BadInput, match="leave one of them out"):
        find_source(settings(root, random, init_checkpoint=root / "vocab.txt"))


@pytest.mark.parametrize(
    ("vocab", "recipe", "message"),
    [
        (CASED, {}, "cased vocabulary"),
        (UNCASED, {"lowercase": False}, "uncased vocabulary"),
        (UNCASED[:-1] + ["a", "b"], {}, "another model"),
        (CASED, {"lowercase": False}, None),
    ],
)
def test_a_vocabulary_must_fit_model_and_case(root, vocab, recipe, message):
    (root / "vocab.txt").write_text("\n".join(vocab))
    if message is None:
        assert find_source(settings(root, recipe)).vocab == vocab
    else:
        with pytest.raises(BadInput, match=message):
            find_source(settings(root, recipe))


def test_a_configuration_of_another_model_is_refused(root):
    config = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "intermediate_size": 8}
    (root / "bert_config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="num_hidden_layers is 2 but the recipe's model has 1"):
        find_source(settings(root))


@pytest.mark.parametrize("starts_from", ["random", "checkpoint"])
def test_a_folders_weights_stop_only_who_wants_them(root, starts_from):
    torch.save({"model": {}}, root / "checkpoint" / "more.pt")
    other = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2}
    other |= {"num_attention_heads": 2, "intermediate_size": 8}
    (root / "checkpoint" / "bert_config.json").write_text(json.dumps(other))
    given = settings(root, {"starts_from": starts_from})
    if starts_from == "random":
        assert find_source(given).init_checkpoint is None
    else:
        with pytest.raises(BadInput, match="holds 2 checkpoints"):
            find_source(given)


def test_what_cannot_be_scored_is_refused_before_training(root):
    (root / "squad" / "dev-v1.1.json").write_text(json.dumps(content(answers=0)))
    with pytest.raises(BadInput, match="no_do_eval"):
        find_source(settings(root))
    assert find_source(settings(root, do_eval=False)).has_eval
