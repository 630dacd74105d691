# SPDX-License-Identifier: Apache-2.0
"""Settings as a file: reading, writing, refusing, and running a record again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bertbench.benchmarks import preset, resolve
from bertbench.common.cli.main import main
from bertbench.common.cli.rerun import settings_of as settings_of_record
from bertbench.common.cli.run_words import run_words
from bertbench.common.config.settings_file import as_toml, changed, read, recipe_of
from bertbench.common.errors import BadInput
from bertbench.common.results.result import Result
from bertbench.common.results.store import load_results

ROOT = Path(__file__).parents[2]
TINY = """mini --synthetic --hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2
    --intermediate_size 32 --vocab_size 64 --max_seq_length 32 --max_position_embeddings 32
    --max_predictions_per_seq 3 --global_batch 4 --max_steps 2 --kernels plain --precision fp32
    --backend cpu_ref --num_threads 1 --skip_checkpoint --system box""".split()


def written(place: Path, text: str) -> str:
    file = place / "a.toml"
    file.write_text(text)
    return str(file)


def test_the_file_comes_before_the_flags(tmp_path: Path) -> None:
    lines = ('recipe = "mini"', "max_steps = 3", "learning_rate = 1e-3", "synthetic = true",
             "cache_eval_data = false", 'target_mlm_accuracy = "None"')  # fmt: skip
    file = written(tmp_path, "\n".join(lines))
    found = resolve("mini", ["--max-steps", "5", f"--config={file}", "--seed", "7"])
    recipe: Any = found.recipe
    run: Any = found.run
    assert (recipe.max_steps, recipe.learning_rate, run.seed) == (5, 1e-3, 7)
    assert run.synthetic and not found.impl.cache_eval_data
    assert recipe.target_mlm_accuracy is None
    assert run.config == Path(file)
    origins = {name: found.origins[name] for name in ("max_steps", "learning_rate", "synthetic",
               "cache_eval_data", "seed", "global_batch")}  # fmt: skip
    assert origins == {
        "max_steps": "flag", "learning_rate": "config", "synthetic": "config",
        "cache_eval_data": "config", "seed": "flag", "global_batch": "preset",
    }  # fmt: skip


def test_the_file_may_name_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, 'recipe = "mini"\nsynthetic = true\n')
    assert recipe_of(["--config", file]) == "mini" == recipe_of(["mini", "--seed", "1"])
    assert run_words("repeat", ["run", "--config", file, "--seed", "4"]) == [
        "run", "mini", "--synthetic", "--seed", "4",
    ]  # fmt: skip
    assert main(["run", "base", "--config", file]) == 2
    assert "settings of mini, not of base" in capsys.readouterr().err
    assert main(["run", "--config", written(tmp_path, "seed = 1")]) == 2
    assert "names no recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_stepz = 3", "did you mean --max_steps"),
        ("max_steps = 0", "max_steps is 0"),
        ('max_steps = "many"', "max_steps"),
        ("[recipe]\nmax_steps = 3", "not a single text"),
        ("max_steps = [3, 4]", "not a single text"),
        ("max_steps = 2026-01-01", "not a single text"),
        ("max_steps 3", "cannot be read"),
        ("recipe = 3", "give a name in quotes"),
        ("help = true", "words of the command line"),
        ("max_ste = 3", "--max_ste: read as --max_steps: a file has names in full"),
        ('"" = 3', "not the name of a setting"),
        ('"max_steps=7" = true', "not the name of a setting"),
        ("no_synthetic = false", "not the name of a setting"),
        ('synthetic = "true"', "without quotes"),
    ],
)
def test_an_error_of_the_file_names_it(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(BadInput, match=r"a\.toml") as caught:
        resolve("mini", ["--config", written(tmp_path, text), "--seed", "3"])
    assert problem in str(caught.value)


def test_a_file_that_is_not_there_or_given_twice(tmp_path: Path) -> None:
    for words, problem in (
        (["--config", str(tmp_path / "gone")], "cannot be read"),
        (["--config"], "needs a file"),
        (["--config", "a", "--config", "b"], "2 times"),
        (["--confi", written(tmp_path, "seed = 3")], "in full|ambiguous"),
    ):
        with pytest.raises(BadInput, match=problem):
            resolve("mini", words)


def test_the_references_config_file_means_the_model(tmp_path: Path) -> None:
    """NVIDIA's --config_file and --config_name are no settings of ours."""
    with pytest.raises(BadInput, match=r"gone\.json"):
        resolve("squad_mini", ["--config_file", str(tmp_path / "gone.json")])


def test_a_path_that_is_not_utf8_is_left_to_a_flag(tmp_path: Path) -> None:
    text = as_toml({"output_dir": "box\udcff", "seed": 3}, "mini", "a comment")
    assert "# output_dir is not UTF-8" in text
    given = read(Path(written(tmp_path, text)))
    assert given.words == ["--seed", "3"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    texts = {"a": 'x"y\\z\n\t\x7f', "b": "~/data", "c": True, "d": False, "e": 1e-05, "f": 2**63,
             "g": None, "h": "caf\u00e9 \U0001f600"}  # fmt: skip
    given = read(Path(written(tmp_path, as_toml(texts, "mini", "a comment"))))
    assert given.recipe == "mini"
    assert given.words == [
        "--a", texts["a"], "--b", str(Path.home() / "data"), "--c", "--no_d", "--e", "1e-05",
        "--f", str(2**63), "--g", "None", "--h", texts["h"],
    ]  # fmt: skip


def test_only_values_that_differ_from_the_recipe_are_kept() -> None:
    settings = resolve("mini", ["--seed", "9", "--hidden_size", "64", "--json", "--quiet"])
    assert changed(settings.as_dict(), preset("mini")) == {"seed": 9, "hidden_size": 64}


def test_values_of_other_versions_of_the_code() -> None:
    config = json.loads(json.dumps(resolve("squad_mini", []).as_dict()))
    del config["recipe"]["extend_positions"], config["impl"]["reduce_dtype"]  # an older record
    assert changed(config, preset("squad_mini")) == {}
    config["impl"]["num_cores"] = None
    assert changed(config, preset("squad_mini")) == {}
    config["impl"]["num_cores"] = 3
    with pytest.raises(BadInput, match="no num_cores here"):
        changed(config, preset("squad_mini"))
    config["origins"]["num_cores"] = "default"
    assert changed(config, preset("squad_mini")) == {}


def record(place: Path, capsys: pytest.CaptureFixture[str]) -> Result:
    assert main(["run", *TINY, "--output_dir", str(place / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["record"]
    (result,) = load_results([found], references=False)[0]
    return result


def test_a_record_runs_again_by_its_file_and_by_rerun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = record(tmp_path, capsys)
    assert "settings.toml" in first.manifest["files"]
    file = first.path / "settings.toml"
    assert read(file).recipe == "mini" and first.run_id in file.read_text()
    commit = first.manifest["commit"][:7] if first.manifest["commit"] else "nocommit"
    assert f"(code: {commit})" in file.read_text().splitlines()[0]
    for words in (["run", "--config", str(file)], ["rerun", str(first.path)]):
        assert main([*words, "--quiet", "--log_freq", "1"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("ok: max_steps reached") and shown.count("\n") == 1
    runs = load_results([tmp_path / "out"], references=False)[0]
    assert len(runs) == 3
    assert len({r.recipe_hash for r in runs}) == 1
    again = [r for r in runs if r.run_id != first.run_id]  # their order is that of seconds
    assert [r.config["origins"]["hidden_size"] for r in (first, *again)] == [
        "flag", "config", "config"
    ]  # fmt: skip
    assert [r.config["origins"]["log_freq"] for r in again] == ["flag", "flag"]
    assert {json.dumps(r.config["recipe"]) for r in runs} == {json.dumps(first.config["recipe"])}
    for one in again:
        assert (
            "step 2/2" in (one.path / "console.log").read_text()
        )  # the record has what --quiet leaves out


def test_rerun_names_other_code_data_and_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(tmp_path, capsys)
    monkeypatch.setattr("bertbench.common.cli.rerun.code_hash", lambda: "f" * 16)
    source = type(
        "Other", (), {"hash": lambda self: "d" * 16, "checkpoint_hash": lambda self: None}
    )
    bench = type("Bench", (), {"prepare": lambda self, settings: source()})
    monkeypatch.setattr("bertbench.common.cli.rerun.load", lambda name: bench())
    assert main(["rerun", str(first.path)]) == 2
    text = capsys.readouterr().err
    assert f"this is {'f' * 16} of commit" in text
    assert f"data: the record has synthetic data or random weights, here is {'d' * 16}" in text
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["rerun", str(first.path)]) == 2
    assert "a run of 1 processes, not of 2" in capsys.readouterr().err


def test_old_records_can_be_rerun() -> None:
    """One of this repository's first records, which has no settings.toml."""
    runs = load_results([ROOT / "results" / "1x-amd-epyc" / "bert_pretraining"], references=False)
    squad = load_results([ROOT / "results" / "1x-amd-epyc" / "bert_squad"], references=False)[0]
    for old in squad:  # from before SQuAD's options were its own
        assert settings_of_record(old).recipe.global_batch == old.config["recipe"]["global_batch"]
    first = runs[0][0]
    assert not (first.path / "settings.toml").exists()
    again = settings_of_record(first, ["--seed", "5"])
    assert again.run.seed == 5 and again.preset.name == "mini"
    assert again.recipe.global_batch == first.config["recipe"]["global_batch"]


@pytest.mark.parametrize("words", [[], ["--force"], ["gone"]])
def test_rerun_needs_a_record(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", *words]) == 2
    assert "record" in capsys.readouterr().err or words == ["gone"]
