# SPDX-License-Identifier: Apache-2.0
"""Whole SQuAD runs from the command line, on questions that the test makes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bertbench.common.cli.main import main
from bertbench.common.data.wheel import WheelUnavailable
from tests.smoke.conftest import ROOT, lines, manifest
from tests.unit.squad.conftest import unpacked

NOUNS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "road"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = [*NOUNS, *NUMBERS, "the", "saw", "how", "many", "?", "."]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TINY = """
    --starts_from random --hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2
    --intermediate_size 64 --vocab_size 32 --max_position_embeddings 64 --max_seq_length 32
    --doc_stride 8 --global_batch 8 --micro_batch 2 --learning_rate 5e-3 --eval_batch_size 16
    --num_train_epochs 1 --log_freq 1 --backend cpu_ref --num_threads 1
""".split()
EXACT = ("--precision", "fp32", "--kernels", "plain")


def squad(seed: int, articles: int) -> dict:
    """Each paragraph holds one number, which answers how many; some need two windows."""
    rng = random.Random(seed)
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(4):
            words = rng.choices(NOUNS, k=rng.randint(4, 30))
            place = rng.randrange(len(words))
            number = words[place] = rng.choice(NUMBERS)
            context = "The " + " ".join(words) + " ."
            answer = {"text": number, "answer_start": len("The " + " ".join(words[:place] + [""]))}
            if place == 0:
                answer["answer_start"] = 4
            assert context[answer["answer_start"] :].startswith(number)
            qas = [{"id": f"{seed}-{a}-{p}", "question": "how many ?", "answers": [answer]}]
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": f"Article {a}", "paragraphs": paragraphs})
    return {"version": "1.1", "data": data}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squad")
    (folder / "squad").mkdir()
    (folder / "squad" / "train-v1.1.json").write_text(json.dumps(squad(0, 40)))
    (folder / "squad" / "dev-v1.1.json").write_text(json.dumps(squad(1, 15)))
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder


class Runs:
    """Starts the command line; results and caches go to folders of the test's own."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out

    def flags(self, *flags: str) -> list[str]:
        return ["run", "squad_mini", *TINY, "--data", str(self.data), "--cache_dir",
                str(self.data / "cache"), "--output_dir", str(self.out), *flags]  # fmt: skip

    def start(self, *flags: str, ranks: int = 1) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m"]
        if ranks > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
        return subprocess.Popen(
            [*launcher, "bertbench", *self.flags(*flags)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *flags: str, ranks: int = 1, code: int = 0) -> Path:
        before = set(self.records())
        if ranks == 1:
            assert main(self.flags(*flags)) == code
        else:
            process = self.start(*flags, ranks=ranks)
            text, _ = process.communicate(timeout=240)
            assert process.returncode == code, text
        (new,) = set(self.records()) - before
        return new

    def records(self) -> list[Path]:
        return sorted(p.parent for p in self.out.glob("*/*/*/manifest.json"))


@pytest.fixture
def runs(files: Path, tmp_path: Path) -> Runs:
    return Runs(files, tmp_path / "results")


def losses(record: Path) -> list[float]:
    return [step["loss"] for step in lines(record, "step")]


def values(record: Path) -> dict[str, float]:
    return {m["name"]: m["value"] for m in manifest(record)["metrics"]}


def dllogger(record: Path) -> list[dict]:
    text = (record / "dllogger.json").read_text().splitlines()
    assert all(line.startswith("DLLL ") for line in text)
    return [json.loads(line[5:]) for line in text]


def test_trains_answers_scores_and_leaves_a_valid_record(runs, capsys):
    copy = runs.out.parent / "log" / "summary.json"
    record = runs.run("--skip_steps", "3", "--num_train_epochs", "3", "--json_summary", str(copy))
    printed = capsys.readouterr().out
    assert main(["validate", str(record)]) == 0
    content, found = manifest(record), values(record)
    assert content["status"] == "ok" and content["mlperf"] is None
    assert content["step"] == -(-content["extras"]["squad"]["train"]["features"] * 3 // 8)
    assert not (record / "result_0.txt").exists()
    assert found["f1"] > 60, "it did not learn to find the number"
    assert losses(record)[-1] < losses(record)[0] / 2

    # the answers in the record are what was scored
    capsys.readouterr()
    dev, predictions = runs.data / "squad" / "dev-v1.1.json", record / "predictions.json"
    assert main(["score", "squad", "--dataset", str(dev), "--predictions", str(predictions)]) == 0
    official = json.loads(capsys.readouterr().out)
    assert official == {"exact_match": found["exact_match"], "f1": found["f1"]}
    best = json.loads((record / "nbest_predictions.json").read_text())
    answers = json.loads(predictions.read_text())
    assert {q: listed[0]["text"] for q, listed in best.items()} == answers and len(answers) == 60

    # rates leave the first steps out, in numerator and in time
    counted = lines(record, "step")[3:]
    seconds = sum(s["window_s"] for s in counted)
    assert found["sequences_per_second"] == pytest.approx(8 * len(counted) / seconds, rel=0.05)
    assert found["inference_latency_p50_s"] <= found["inference_latency_p99_s"]

    named = {}
    for line in dllogger(record):
        if line["type"] == "LOG" and line["step"] == []:
            named |= line["data"]
    assert named["F1"] == found["f1"] and named["exact_match"] == found["exact_match"]
    assert named["training_sequences_per_second"] == found["sequences_per_second"]
    assert named["final_loss"] == losses(record)[-1]
    assert copy.read_text() == (record / "dllogger.json").read_text()
    report = json.loads((record / "final_report.json").read_text())
    assert report["train_fps_min"] <= report["train_fps_mean"] <= report["train_fps_max"]
    assert report["predict_num_examples"] == 60 and report["f1"] == found["f1"]
    assert json.loads(printed.partition("Final report:")[2]) == report


def test_killed_and_resumed_gives_the_losses_of_an_unbroken_run(runs):
    whole = runs.run(*EXACT)
    process = runs.start(*EXACT, "--num_samples_per_checkpoint", "24")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step  5/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    (broken,) = set(runs.records()) - {whole}
    assert manifest(broken)["status"] == "interrupted"
    resumed = runs.run(*EXACT, "--resume", "last", "--num_samples_per_checkpoint", "24")
    assert losses(broken) + losses(resumed) == losses(whole)
    assert values(resumed)["f1"] == values(whole)["f1"]
    assert (resumed / "predictions.json").read_text() == (whole / "predictions.json").read_text()
    last = runs.run(*EXACT, "--resume", str(resumed))  # trained to the end: only answers are left
    assert values(last)["f1"] == values(whole)["f1"] and losses(last) == []
    assert main(["validate", str(last)]) == 0


def test_two_ranks_train_and_answer_like_one(runs):
    still = ("--hidden_dropout", "0", "--attention_dropout", "0", "--max_steps", "10")
    alone = runs.run(*EXACT, *still)
    both = runs.run(*EXACT, *still, ranks=2)
    assert losses(both) == pytest.approx(losses(alone), rel=2e-5)
    assert manifest(both)["world_size"] == 2
    one, two = (json.loads((r / "nbest_predictions.json").read_text()) for r in (alone, both))
    for question, listed in one.items():
        for mine, theirs in zip(listed, two[question], strict=True):
            assert mine["start_logit"] == pytest.approx(theirs["start_logit"], abs=1e-3)
    assert values(both)["f1"] == pytest.approx(values(alone)["f1"], abs=2)


def test_the_weights_of_a_run_answer_again_without_training(runs):
    first = runs.run(*EXACT, "--max_steps", "8")
    script = runs.out.parent / "mine.py"
    script.write_text(
        "import json, sys\nn = len(json.load(open(sys.argv[2])))\n"
        "print('article=0')\nprint(json.dumps({'exact_match': 1.5, 'f1': n}))\n"
    )
    folder = runs.out.parent / "weights"
    export = ("export-weights", str(first), "--output", str(folder), "--naming", "nvidia")
    assert main([*export, "--vocab_file", str(runs.data / "vocab.txt")]) == 0
    weights = folder / "pytorch_model.bin"
    given = ("--starts_from", "checkpoint", "--init_checkpoint", str(weights), "--no_do_train")
    again = runs.run(*EXACT, *given, "--eval_script", str(script))
    assert main(["validate", str(again)]) == 0
    assert (again / "predictions.json").read_text() == (first / "predictions.json").read_text()
    found = values(again)
    assert found["f1"] == values(first)["f1"] and "sequences_per_second" not in found
    assert (found["eval_script_exact_match"], found["eval_script_f1"]) == (1.5, 60)
    assert manifest(again)["samples"] == 0 and found["inference_sequences_per_second"] > 0
    assert "train_fps_mean" not in json.loads((again / "final_report.json").read_text())


def test_training_goes_on_with_its_own_questions_only(runs, capsys, tmp_path):
    first = runs.run(*EXACT, "--max_steps", "4")
    other = tmp_path / "other.json"
    text = (runs.data / "squad" / "train-v1.1.json").read_text()
    other.write_text(text.replace("cat", "dog"))
    flags = (*EXACT, "--max_steps", "4", "--resume", str(first), "--train_file", str(other))
    record = runs.run(*flags, code=1)
    assert "resume with the same seed and data" in manifest(record)["reason"]
    assert manifest(record)["status"] == "failed"


def test_a_run_that_fails_says_how_far_it_came(runs):
    record = runs.run("--max_steps", "6", "--learning_rate", "1e6", "--log_freq", "2", code=1)
    told = manifest(record)
    assert told["status"] == "failed" and "not finite" in told["reason"]
    assert 0 < told["step"] <= 6 and told["samples"] == 8 * told["step"]
    assert main(["validate", str(record)]) == 0


def test_questions_without_true_answers_are_answered_and_not_scored(runs, files, tmp_path):
    content = squad(2, 2)
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                del qa["answers"]
    unknown = tmp_path / "test.json"
    unknown.write_text(json.dumps(content))
    given = ("--max_steps", "1", "--predict_file", str(unknown))
    record = runs.run(*given, "--no_do_eval")
    assert len(json.loads((record / "predictions.json").read_text())) == 8
    assert "f1" not in values(record) and main(["validate", str(record)]) == 0
    assert main(runs.flags(*given)) == 2  # found out before training


def test_questions_without_an_answer(runs, tmp_path):
    """SQuAD v2.0: half of the paragraphs have no number."""
    given = []
    for part, seed, articles in (("train", 3, 60), ("predict", 4, 15)):
        content = squad(seed, articles) | {"version": "v2.0"}
        for number, article in enumerate(content["data"]):
            for paragraph in article["paragraphs"]:
                (qa,) = paragraph["qas"]
                qa["is_impossible"] = bool(number % 2)
                if qa["is_impossible"]:
                    qa["answers"] = []
                    for word in NUMBERS:
                        paragraph["context"] = paragraph["context"].replace(word, "cat")
        file = tmp_path / f"{part}.json"
        file.write_text(json.dumps(content))
        given += [f"--{part}_file", str(file)]
    record = runs.run(*given, "--v2", "--num_train_epochs", "4")
    scoring = manifest(record)["extras"]["scoring"]
    assert scoring["version"] == "2.0"
    assert (scoring["HasAns_total"], scoring["NoAns_total"]) == (32, 28)
    assert scoring["HasAns_f1"] > 60 and scoring["NoAns_f1"] > 60
    answers = json.loads((record / "predictions.json").read_text())
    assert "" in answers.values() and len(answers) == 60


def test_minilm_learns_from_a_few_hundred_questions_of_the_dev_file(tmp_path):
    """The dev file split by article: enough to show that real weights train, and no result."""
    content = json.loads(unpacked("dev-v1.1.json", tmp_path).read_bytes())
    parts = {"train": (content["data"][0], 200), "predict": (content["data"][1], 40)}
    runs, given = Runs(tmp_path, tmp_path / "results"), []
    for part, (article, most) in parts.items():
        paragraphs = []
        for paragraph in article["paragraphs"]:
            most -= len(paragraph["qas"])
            if most < 0:
                break
            paragraphs.append(paragraph)
            for qa in paragraph["qas"]:  # training takes one answer, scoring all of them
                qa["answers"] = qa["answers"][:1] if part == "train" else qa["answers"]
        file = tmp_path / f"{part}.json"
        file.write_text(json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}))
        given += [f"--{part}_file", str(file)]
    flags = [
        *given, "--output_dir", str(runs.out), "--backend", "cpu_ref",
        "--num_threads", "1", "--global_batch", "8", "--num_train_epochs", "1", "--log_freq", "1",
        "--max_seq_length", "256",
    ]  # fmt: skip
    try:
        code = main(["run", "squad_mini", *flags])
    except WheelUnavailable as error:
        pytest.skip(str(error))
    (record,) = runs.records()
    assert code == 0 and main(["validate", str(record)]) == 0
    found = losses(record)
    assert sum(found[-8:]) / 8 < sum(found[:3]) / 3 - 0.5
    assert 0 < values(record)["f1"] < 100
    assert "qa_outputs.weight" in " ".join(manifest(record)["notes"])
    assert manifest(record)["inputs"]["checkpoint"] is not None


def test_synthetic_features_for_speed(runs):
    record = runs.run("--synthetic", "--max_steps", "2", "--starts_from", "random")
    assert main(["validate", str(record)]) == 0
    assert values(record)["sequences_per_second"] > 0 and not (record / "predictions.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predict_file", "nowhere.json"], "nowhere.json does not exist"),
        (["--starts_from", "checkpoint"], "the weights to start from (--init_checkpoint)"),
        (["--vocab_size", "64"], "vocabulary of another model"),
        (["--no_lowercase"], "uncased vocabulary"),
        (["--no_do_train", "--no_do_predict"], "nothing to do"),
        (["--division", "open"], "unknown flag --division"),
        (["--submission_org", "X"], "unknown flag --submission_org"),
        (["--eval_script", "none.py"], "no such file"),
        (["--n_best_size", "0"], "at least 1"),
        (["--synthetic", "--do_predict"], "only trains"),
        (["--synthetic", "--max_seq_length", "2"], "at least 4"),
        (["--json_summary", "/dev/null/below"], "--json_summary /dev/null/below"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_fix(runs, capsys, flags, message):
    assert main(runs.flags(*flags)) == 2
    assert message in capsys.readouterr().err
    assert runs.records() == []


def test_a_pickle_with_code_is_refused(runs, capsys, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    file = tmp_path / "weights.pt"
    torch.save({"model": Harm()}, file)
    flags = ("--starts_from", "checkpoint", "--init_checkpoint", str(file))
    assert main(runs.flags(*flags)) == 2
    assert "Nothing in it was executed" in capsys.readouterr().err
    assert not (tmp_path / "harm").exists()
