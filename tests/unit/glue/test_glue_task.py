# SPDX-License-Identifier: Apache-2.0
"""A run of each kind from files to scores and predictions; files found or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glue_files import table

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks.glue.benchmark import Glue
from bertbench.benchmarks.glue.data import check_files, find_source
from bertbench.benchmarks.glue.recipes import PRESETS
from bertbench.benchmarks.glue.scores import score
from bertbench.benchmarks.glue.task import GlueTask
from bertbench.benchmarks.glue.tasks import TASKS
from bertbench.common.cli.main import main
from bertbench.common.config.recipe import Settings
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.common.model.weights import export_state_dict
from bertbench.common.results.validate import validate

MODEL = BertConfig(
    vocab_size=19, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip
TINY = (
    "--starts_from random --vocab_size 19 --hidden_size 32 --num_hidden_layers 1 --global_batch 4"
    " --num_attention_heads 2 --intermediate_size 32 --max_position_embeddings 16"
    " --max_seq_length 16 --backend cpu_ref --precision fp32 --num_threads 1 --max_steps 2"
    " --skip_checkpoint"
).split()
HEADS = {
    "mnli": "index|sentence1|sentence2|gold_label",
    "qqp": "id|qid1|qid2|question1|question2|is_duplicate",
    "qnli": "index|question|sentence|label",
    "sst2": "sentence|label",
    "cola": "",
    "stsb": "index|sentence1|sentence2|score",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "rte": "index|sentence1|sentence2|label",
}
ROWS = {
    "mnli": "{i}|the cat runs {t}|the dog sees {t}|{label}",
    "qqp": "{i}|1|2|cat {t} ?|dog {t} ?|{label}",
    "qnli": "{i}|cat {t} ?|the dog {t}|{label}",
    "sst2": "the old cat {t}|{label}",
    "cola": "gj04|{label}||the cat {t}",
    "stsb": "{i}|a cat {t}|the dog runs {t}|{label}",
    "mrpc": "{label}|{i}|2{i}|the cat {t}|a dog {t}",
    "rte": "{i}|the cat {t}|the dog {t}|{label}",
}
TESTS = {
    "mrpc": ("index|#1 ID|#2 ID|#1 String|#2 String", "{i}|1|2|cat {t}|dog {t}"),
    "cola": ("index|sentence", "{i}|the cat {t}"),
    "sst2": ("index|sentence", "{i}|the cat {t}"),
    "qqp": ("id|question1|question2", "{i}|cat {t}|dog {t}"),
}


def rows(task: str, number: int, form: str | None = None) -> list[str]:
    labels = TASKS[task].labels or ("0.0", "2.5", "5.0")
    return [
        (form or ROWS[task]).format(i=i, t="one " * (i % 5), label=labels[i % len(labels)])
        for i in range(number)
    ]


def folder(root: Path, task: str, train: int = 24, dev: int = 9) -> Path:
    """Write the task's folder as GLUE's archive has it; return the root."""
    place = root / TASKS[task].folder
    table(place / "train.tsv", HEADS[task], rows(task, train))
    for one in TASKS[task].sets:
        table(place / one.dev, HEADS[task], rows(task, dev))
        label = TASKS[task].label[0]
        head, form = TESTS.get(
            task,
            (HEADS[task].replace(f"|{label}", ""), ROWS[task].replace("|{label}", "")),
        )
        table(place / one.test, head, rows(task, 5, form))
    return root


def record(out: Path) -> Path:
    (found,) = out.glob("*/glue/*")
    return found


def run(capsys: Any, out: Path, *flags: str) -> dict[str, float]:
    assert main(["run", "glue_mini", *TINY, "--output_dir", str(out), "--json", *flags]) == 0
    metrics: dict[str, float] = json.loads(capsys.readouterr().out)["metrics"]
    return metrics


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn", reason="scikit-learn (the extra glue) is absent")


@pytest.mark.parametrize("task", TASKS)
def test_a_run_scores_its_columns_and_labels_the_test_set(sklearn, tmp_path, vocab, capsys, task):
    root = folder(tmp_path / "glue_data", task)
    flags = ("--task", task, "--data", str(root), "--vocab_file", str(vocab))
    metrics = run(capsys, tmp_path / "out", *flags, "--do_train", "--do_eval", "--do_predict")
    made = record(tmp_path / "out")
    assert not [p for p in validate(made) if p.severity == "error"]
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["quality"]["metric"] == TASKS[task].sets[0].column
    assert manifest["inputs"]["data"]
    assert f"vocabulary {vocab}" in manifest["notes"]
    facts = manifest["extras"]
    assert facts["labels"] == list(TASKS[task].names or TASKS[task].labels)
    assert facts["glue"]["train"]["examples"] == 24
    for one in TASKS[task].sets:
        test = (made / f"{one.submission}.tsv").read_text().splitlines()
        assert test[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in test[1:]] == list("01234")
        # The dev file holds the labels that were scored: the same metrics follow from it.
        dev = [line.split("\t") for line in (made / f"dev_{one.submission}.tsv").open()][1:]
        labels = TASKS[task].labels
        found = [labels.index(x.strip()) if labels else float(x) for _, x in dev]
        true = [i % 3 * 2.5 if task == "stsb" else i % len(labels) for i in range(9)]
        expected = score(TASKS[task], one.column, np.array(true), np.array(found))
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-2)
        assert {f"{one.submission}.tsv", f"dev_{one.submission}.tsv"} <= set(manifest["files"])


def test_a_run_on_a_split_of_ours_and_its_target(sklearn, tmp_path, vocab, capsys):
    # Equal texts have two labels, so that no model is always right, and none always wrong.
    file = table(tmp_path / "dev.tsv", HEADS["rte"], [
        f"{i}|the cat {'one ' * (i // 3)}|the dog|{'not_' * (i % 3 == 0)}entailment"
        for i in range(30)
    ])  # fmt: skip
    flags = ("--task", "rte", "--train_file", str(file), "--eval_share", "0.4",
             "--vocab_file", str(vocab))  # fmt: skip
    metrics = run(capsys, tmp_path / "out", *flags, "--target_score", "30")
    manifest = json.loads((record(tmp_path / "out") / "manifest.json").read_text())
    facts = manifest["extras"]["glue"]
    assert facts["train"]["examples"] + facts["dev_rte"]["examples"] == 30
    assert facts["split"] == "eval_share 0.4 by the sha256 of the first text"
    (metric,) = (m for m in manifest["metrics"] if m["name"] == "rte")
    assert "0.4 of the training file" in metric["definition"] and 30 < metrics["rte"] < 70
    assert manifest["status"] == "ok" and manifest["quality"]["reached"]
    words = ["run", "glue_mini", *TINY, *flags, "--output_dir", str(tmp_path / "more")]
    assert main([*words, "--target_score", "100"]) == 1


def settings(recipe: dict[str, Any] | None = None, preset: str = "glue_rte", **given: Any):
    base = PRESETS[preset]
    shape = {"model": MODEL, "max_seq_length": 16, "starts_from": "random", **(recipe or {})}
    return Settings(
        preset=base, recipe=replace(base.recipe, **shape), impl=base.impl,
        run=replace(base.run, **given),
    )  # fmt: skip


def test_ranks_evaluate_each_example_once(sklearn, tmp_path, vocab):
    """Four ranks' logits are put together to the scores of one rank."""
    root = folder(tmp_path, "mnli", dev=11)
    chosen = settings(preset="glue_mnli", data=root, vocab_file=vocab)
    source = find_source(chosen)
    whole = GlueTask(chosen, CpuRef(), World(), source)

    def logits(task: GlueTask) -> np.ndarray:
        task.model.eval()
        with torch.no_grad():
            for batch in task.eval_batches():
                task.eval_sums(task.model, batch)
        return torch.cat(task._logits).numpy()

    expected = whole._score([logits(whole)])
    labels = [part.tolist() for part in whole.predicted]
    tasks = [
        GlueTask(chosen, CpuRef(), World(rank=r, size=4, local_rank=r, local_size=4), source)
        for r in range(4)
    ]
    parts = [logits(task) for task in tasks]
    assert [len(part) for part in parts] == [6, 6, 5, 5]
    assert tasks[0]._score(parts) == pytest.approx(expected)
    assert [part.tolist() for part in tasks[0].predicted] == labels
    assert set(expected) == {"examples", "mnli_matched", "mnli_mismatched"}


def test_mrpc_as_microsoft_and_glue_leave_it(sklearn, tmp_path, vocab):
    place = tmp_path / "MRPC"
    made = rows("mrpc", 10)
    table(place / "msr_paraphrase_train.txt", "\ufeff" + HEADS["mrpc"], made)
    table(place / "msr_paraphrase_test.txt", "\ufeff" + HEADS["mrpc"], made[:3])
    table(place / "dev_ids.tsv", "", ["3|23", "8|28"])
    for root in (tmp_path, place):
        chosen = settings(preset="glue_mrpc", data=root, vocab_file=vocab, do_predict=True)
        source = find_source(chosen)
        assert source.train is not None and len(source.train) == 8
        dev, test = source.parts
        assert (dev.file, dev.index, test.file, len(test.features)) == (
            "dev_MRPC.tsv", ["3", "8"], "MRPC.tsv", 3,
        )  # fmt: skip
    (place / "dev_ids.tsv").unlink()
    with pytest.raises(BadInput, match=r"MRPC/dev.tsv \(--dev_file; or --eval_share"):
        check_files(chosen)
    split = settings({"eval_share": 0.5}, "glue_mrpc", data=tmp_path, vocab_file=vocab)
    assert find_source(split).own["split"]


def test_the_data_set_is_identified_by_what_the_result_depends_on(sklearn, tmp_path, vocab):
    root = folder(tmp_path, "rte")
    chosen = settings(data=root, vocab_file=vocab, do_predict=True)
    first = find_source(chosen).hash()
    test = root / "RTE" / "test.tsv"
    test.write_text(test.read_text().replace("cat", "dog"))
    assert find_source(chosen).hash() == first  # no label, no score
    for name in ("dev.tsv", "train.tsv"):
        path = root / "RTE" / name
        path.write_text(path.read_text().replace("cat", "dog", 1))
        assert find_source(chosen).hash() != first
        first = find_source(chosen).hash()


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ({}, {"data": "@/none"}, r"--data .* is not a folder: it must hold RTE/"),
        ({}, {"data": "@"}, r"RTE/train.tsv \(--train_file\)"),
        ({"task": "mnli"}, {"data": "@"}, "MNLI/dev_matched.tsv and dev_mismatched.tsv"),
        ({}, {"train_file": "@/gone", "dev_file": "@/gone"}, "--train_file: .* does not exist"),
        ({}, {"train_file": "@", "dev_file": "@"}, "--train_file: .* is not a plain file"),
        ({"starts_from": "checkpoint"}, {"data": "@"}, r"weights to start from \(--init_check"),
        ({"eval_share": 0.1}, {"dev_file": "@/d"}, "--eval_share beside --dev_file"),
        ({}, {"init_checkpoint": "@/c.pt"}, "beside --starts_from random"),
        ({}, {"do_train": False, "do_eval": False}, "there is nothing to do"),
        ({}, {"synthetic": True, "do_train": False}, "--synthetic only trains"),
    ],
)
def test_what_is_missing_or_contradicts_is_named(sklearn, tmp_path, recipe, given, message):
    paths = {
        name: Path(str(value).replace("@", str(tmp_path))) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with pytest.raises(BadInput, match=message):
        check_files(settings(recipe, **paths))


def test_without_training_the_weights_must_hold_the_head(sklearn, tmp_path, vocab):
    root = folder(tmp_path, "rte")
    chosen = settings(data=root, vocab_file=vocab)
    source = find_source(chosen)
    trained = GlueTask(chosen, CpuRef(), World(), source)
    bare = {n: p for n, p in trained.model.state_dict().items() if "classifier" not in n}
    torch.save(bare, tmp_path / "bare.pt")
    shape = {"starts_from": "checkpoint"}
    chosen = settings(shape, data=root, vocab_file=vocab, init_checkpoint=tmp_path / "bare.pt")
    task = Glue().build(chosen, CpuRef(), World(), find_source(chosen))
    assert task.facts().init_checkpoint["missing"] == ["classifier.weight", "classifier.bias"]
    only = replace(chosen, run=replace(chosen.run, do_train=False))
    with pytest.raises(BadInput, match="lacks 2 of the model's"):
        Glue().build(only, CpuRef(), World(), find_source(only))


@pytest.mark.parametrize("form", ["huggingface", "nvidia", "own"])
def test_the_head_of_another_task_is_replaced_by_a_new_one(sklearn, tmp_path, vocab, form):
    """RTE from MNLI's weights, as is usual; and without training they are refused."""
    first = settings(preset="glue_mnli", data=folder(tmp_path, "mnli"), vocab_file=vocab)
    trained = GlueTask(first, CpuRef(), World(), find_source(first)).model
    path = tmp_path / "mnli.pt"
    if form == "own":
        torch.save(trained.state_dict(), path)
    else:
        named = export_state_dict(trained, form)
        torch.save({"model": named} if form == "nvidia" else named, path)
    files = {"data": folder(tmp_path, "rte"), "vocab_file": vocab, "init_checkpoint": path}
    chosen = settings({"starts_from": "checkpoint"}, **files)
    task = GlueTask(chosen, CpuRef(), World(), find_source(chosen))
    assert task.model.classifier.weight.shape == (2, 32)
    assert torch.equal(task.model.pooler.dense.weight, trained.pooler.dense.weight)
    assert task.facts().init_checkpoint["missing"] == ["classifier.weight", "classifier.bias"]
    assert any("3 outputs and is another task's" in note for note in task.notes)
    only = replace(chosen, run=replace(chosen.run, do_train=False))
    with pytest.raises(BadInput, match=r"classifier\.\w+ has shape \[3"):
        GlueTask(only, CpuRef(), World(), find_source(only))


def test_steps_and_rates(tmp_path):
    chosen = settings({"num_train_epochs": 1.5, "global_batch": 32}, synthetic=True)
    task = GlueTask(chosen, CpuRef(), World(), find_source(chosen))
    assert task.schedule_steps == task.total_steps == -(-392_702 * 3 // 64)
    rates = [task.learning_rate(step) for step in range(task.schedule_steps)]
    assert max(rates) == pytest.approx(2e-5, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(0.1 * len(rates), rel=1e-2)
    assert rates[-1] < 1e-8
