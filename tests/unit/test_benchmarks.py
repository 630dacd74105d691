# SPDX-License-Identifier: Apache-2.0
"""The registry of benchmarks, packages that add one, and the public API."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import bertbench
from bertbench import benchmarks
from bertbench.common.cli.main import main
from bertbench.common.config import plugins
from bertbench.common.errors import BadInput

ROOT = Path(__file__).parents[2]
TINY = {
    "backend": "cpu_ref", "synthetic": True, "kernels": "plain", "max_steps": 2, "vocab_size": 64,
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_seq_length": 16, "max_predictions_per_seq": 2, "global_batch": 4, "num_threads": 1,
    "skip_checkpoint": True,
}  # fmt: skip


BROKEN = """
from bertbench.benchmarks import preset
from bertbench.benchmarks.base import Benchmark

def __getattr__(attribute):
    if attribute == "Exits":
        raise SystemExit(3)
    raise AttributeError(attribute)

class Base(Benchmark):
    prepare = build = lambda *_: None

class Listed(Base):
    name, presets = "listed", []

class Junk(Base):
    name, presets = "junk", {"a": 1}

class Other(Base):
    name = "other"
    @property
    def presets(self):
        from bertbench.benchmarks.bert_pretraining.recipes import PRESETS
        return {"mini": PRESETS["mini"]}

class Odd(Base):
    name, presets = "Odd Name", {}
"""


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """The registry remembers: forget before and after."""
    for cached in (benchmarks.load, benchmarks._catalogue):
        cached.cache_clear()
    yield
    for cached in (benchmarks.load, benchmarks._catalogue):
        cached.cache_clear()


def offer(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entry = EntryPoint(name, value, benchmarks.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("bert_squad", "nowhere:Kind", "that name is built in"),
        ("mine", "no_such_module:Kind", "No module named 'no_such_module'"),
        ("mine", "json:dumps", "must lead to a subclass of Benchmark"),
        ("mine", "bertbench.benchmarks.base:Benchmark", "must lead to a subclass of Benchmark"),
        ("mine", "broken_plugins:Exits", "SystemExit: 3"),
        ("listed", "broken_plugins:Listed", "presets are not a mapping"),
        ("junk", "broken_plugins:Junk", "preset 'a' is not a Preset of that name"),
        ("other", "broken_plugins:Other", "preset 'mini' is not a Preset of that name"),
        ("Odd Name", "broken_plugins:Odd", "use lower-case letters"),
    ],
)
def test_a_broken_package_harms_no_other(
    name: str, value: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fresh_registry: None, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "broken_plugins.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, name, value)
    assert "mini" in benchmarks.presets()
    (line,) = benchmarks.refused()
    assert f"benchmark {name!r}" in line and why in line
    assert main(["list"]) == 0
    assert line in capsys.readouterr().err
    assert main(["run", "nano"]) == 2
    assert line in capsys.readouterr().err


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(BadInput, match="unknown benchmark 'swag'; known: bert_pretraining, "):
        benchmarks.load("swag")
    with pytest.raises(BadInput, match="unknown recipe 'vast'; known: mini, "):
        benchmarks.preset("vast")
    with pytest.raises(BadInput, match="unknown recipe 'minni'; did you mean mini"):
        benchmarks.preset("minni")


def test_options_belong_to_who_understands_them(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("submission_org", "division", "text", "input_dir"):
        assert main(["run", "squad_mini", "--synthetic", f"--{flag}", "X"]) == 2
        assert f"unknown flag --{flag}" in capsys.readouterr().err
    settings = benchmarks.resolve("mini", ["--submission_org", "X"])
    assert settings.as_dict()["run"]["submission_org"] == "X"


def test_a_third_benchmark_from_the_skeleton_alone(tmp_path: Path) -> None:
    """Written, installed, listed, run to its target, recorded, validated, compared, reported.

    In processes of their own, which see the package as any user's would.
    """
    assert main(["new-benchmark", "long_marks", "--output", str(tmp_path)]) == 0
    package = tmp_path / "bertbench-long-marks"
    for file in package.rglob("*.*"):
        assert "mybench" not in file.read_text().lower()
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    pip = "-m pip install --quiet --no-deps --no-build-isolation --no-index".split()
    site = tmp_path / "site"
    subprocess.run([sys.executable, *pip, "--target", str(site), str(copy)], check=True)

    def bertbench_(*words: str, code: int = 0) -> str:
        program = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]; " + (
            "from bertbench.common.cli.main import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    assert "long_marks_tiny" in bertbench_("list")
    assert "target_accuracy" in bertbench_("describe", "long_marks_tiny")
    flags = ["--backend", "cpu_ref", "--num_threads", "1", "--json"]
    told = json.loads(bertbench_("run", "long_marks_tiny", *flags).splitlines()[-1])
    assert told["status"] == "ok" and told["metrics"]["accuracy"] >= 0.9
    bertbench_("validate", "results")
    bertbench_("compare", told["record"], told["record"], "--metric", "accuracy")
    bertbench_("report", "results", "--out", "report", "--no-references")
    assert "long" in (tmp_path / "report" / "report.md").read_text()
    for flag in ("--data", "--init_checkpoint", "--synthetic"):  # nobody reads them
        assert f"unknown flag {flag}" in bertbench_("run", "long_marks_tiny", *flags, flag, code=2)
    assert "lower it" in bertbench_(
        "run", "long_marks_tiny", *flags, "--max_seq_length", "99", code=2
    )


# -- the public names
def test_every_public_name_exists_and_importing_is_cheap() -> None:
    for name in bertbench.__all__:
        assert getattr(bertbench, name) is not None
    assert set(bertbench.__all__) == set(bertbench._HOME)
    code = "import sys, bertbench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = bertbench.Nothing


def test_a_run_its_metrics_and_a_comparison_are_three_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bertbench.run("mini", output_dir=tmp_path, **TINY)
    assert record.value("sequences_per_second") > 0
    found = bertbench.compare([record], [record], metrics=["sequences_per_second"])
    assert [row.ratio for row in found.rows] == [1.0]
    assert bertbench.load_records(tmp_path)[0].run_id == record.run_id
    with pytest.raises(BadInput, match="no such file or folder"):
        bertbench.load_records(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="precision"):
        bertbench.run("mini", **{**TINY, "precision": "foo"})
    assert bertbench.compare(record, record, metrics="sequences_per_second").rows
    with pytest.raises(BadInput, match="threshold"):
        bertbench.compare(record, record, threshold=-5)
    with pytest.raises(BadInput, match="leave dry_run out"):
        bertbench.run("mini", output_dir=tmp_path, dry_run=True, **TINY)


def test_somebody_elses_packages_of_our_names_do_no_harm(tmp_path: Path) -> None:
    for name in ("common", "backends", "benchmarks", "engines", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a vendor package')\n")
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "run", "mini", "--synthetic", "--dry_run",
         "--backend", "cpu_ref"],
        cwd=ROOT, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recipe", ["mini", "squad_mini", "glue_mini"])
def test_a_folder_of_weights_leads_to_its_files(tmp_path: Path, recipe: str) -> None:
    def found(*more: str) -> tuple[Path | None, Path | None]:
        run = benchmarks.resolve(recipe, ["--init_checkpoint", str(tmp_path), *more]).run
        return run.init_checkpoint, run.bert_config_path  # type: ignore[attr-defined]

    (tmp_path / "pytorch_model.bin").touch()
    assert found() == (tmp_path, None), "without config.json it is no model's folder"
    (tmp_path / "config.json").touch()
    assert found() == (tmp_path / "pytorch_model.bin", tmp_path / "config.json")
    (tmp_path / "model.safetensors").touch()
    assert found()[0] == tmp_path / "model.safetensors"
    if recipe == "mini":  # others read it at once
        assert found("--bert_config_path", "mine.json")[1] == Path("mine.json")
    settings = benchmarks.resolve(recipe, ["--init_checkpoint", str(tmp_path)])
    assert settings.origins["bert_config_path"] == settings.origins["init_checkpoint"] == "flag"


def test_a_folder_of_split_weights_stays_and_is_refused_later(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors.index.json").touch()
    settings = benchmarks.resolve("mini", ["--init_checkpoint", str(tmp_path), "--synthetic"])
    with pytest.raises(BadInput, match="split over several files"):
        benchmarks.load("bert_pretraining").check(settings)
