# SPDX-License-Identifier: Apache-2.0
"""scripts/run_pretraining.sh: NVIDIA's positional parameters, two phases, resuming."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.flags import FLAGS
from bertbench.benchmarks.phases import script as phases
from bertbench.common.errors import BadInput

ROOT = Path(__file__).parents[2]
SYNTHETIC = ["--synthetic", "--output_dir", "out"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BERT_PREP_WORKING_DIR", raising=False)


def checkpoint(recipe: str, step: int, run: str = "r") -> Path:
    folder = Path("out/system/bert_pretraining") / run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder.parent.parent / "config.json").write_text(json.dumps({"preset": recipe}))
    return folder


def test_the_script_is_thin() -> None:
    script = ROOT / "scripts" / "run_pretraining.sh"
    assert '--positional "$@"' in script.read_text() and os.access(script, os.X_OK)


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_defaults_are_the_recipes(size: str, phase: int) -> None:
    script = phases.read([*SYNTHETIC, "--recipe", f"nvidia_{size}"])
    asked = phases.request(script, phase, [])
    flags = [*asked.script_flags, *asked.flags]
    settings, plain = resolve(asked.recipe, flags), resolve(asked.recipe, [])
    assert settings.recipe == plain.recipe and asked.devices == 8
    assert settings.impl.max_micro_batch == plain.impl.max_micro_batch
    assert (settings.impl.precision, settings.run.seed) == ("fp16", 12439)
    assert len(phases.DEFAULTS) == 24


def test_parameters_reach_their_phase(tmp_path: Path) -> None:
    text = "64 1e-3 tf32 2 0.1 10 4 false true true 8 7 job false false 32 2e-3 0.2 6 4"
    words = [*text.split(), str(tmp_path), str(tmp_path), "code"]
    script = phases.read(words)
    first, second = (phases.request(script, n, []).values for n in (1, 2))
    assert (first["global_batch"], first["max_micro_batch"], first["max_steps"]) == (
        "128",
        "8",
        "10",
    )
    assert (second["global_batch"], second["max_micro_batch"]) == ("64", "8")
    assert (second["learning_rate"], second["warmup_proportion"]) == ("2e-3", "0.2")
    assert first["output_dir"] == "code/results" and first["input_dir"] == str(tmp_path)
    log = phases._log(script, 1, phases.request(script, 1, []))
    assert log is not None
    assert log.name.startswith("job.pyt_bert_pretraining_phase1_tf32_gbs128.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1"] * 25, "24 parameters"),
        (["", "", "int8"], "precision 'int8'"),
        ([*[""] * 7, "yes"], "give true or false"),
        (["--skip_checkpoint"], "phase 2 starts from"),
        ([*[""] * 12, "../job"], "job_name"),
    ],
)
def test_refused_words(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        phases.read(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["100"], "do not divide"), (["", "", "", "0"], "num_gpus is 0"), ([], "parameter 21")],
)
def test_refused_requests(words: list[str], message: str) -> None:
    script = phases.read([*words, *(SYNTHETIC if words else [])])
    with pytest.raises(BadInput, match=message):
        phases.request(script, 1, [])


def test_lamb_selects_the_search_and_is_passed_on() -> None:
    script = phases.read(["--lamb", "1e-4", *SYNTHETIC])
    assert script.recipe(1) == f"{phases.SEARCH}_phase1"
    assert list(script.flags[:2]) == ["--lamb", "1e-4"] and "--lamb" not in script.plain
    assert FLAGS.read(script.plain)


def test_resuming() -> None:
    again = phases.read([*[""] * 7, "true", *SYNTHETIC])
    with pytest.raises(BadInput, match="no checkpoint of nvidia_large_phase1"):
        phases.starts(again)
    early = checkpoint("nvidia_large_phase1", 200, "a")
    assert phases.starts(again) == {1: ["--resume", str(early)], 2: []}
    with pytest.raises(BadInput, match="ends at step 200"):
        phases.weights_of_phase1(again)
    last = checkpoint("nvidia_large_phase1", 7038, "b")
    assert phases.starts(again) == {2: []}
    assert phases.weights_of_phase1(again)[1] == str(last / "model.safetensors")
    second = checkpoint("nvidia_large_phase2", 9, "c")
    assert phases.starts(again) == {2: ["--resume", str(second)]}
