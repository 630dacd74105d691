# SPDX-License-Identifier: Apache-2.0
"""`bertbench data VERB` as a person types it."""

from __future__ import annotations

import json
import shutil

import pytest
from text_files import articles, write_plain, write_vocab

from bertbench.common.cli.main import main
from bertbench.common.native import NativeUnavailable
from bertbench.common.prepare import masking


@pytest.fixture
def prepare_flags(tmp_path):
    text = write_plain(tmp_path / "text.txt", articles(80))
    vocab = write_vocab(tmp_path / "vocab.txt")
    return [
        *("data", "prepare", "--text", str(text), "--vocab", str(vocab)),
        *("--output", str(tmp_path / "out"), "--eval_fraction", "0.1", "--num_shards", "2"),
        *("--max_seq_length", "64", "--max_predictions_per_seq", "10", "--dupe_factor", "3"),
    ]


def run_json(capsys, *args):
    code = main([*args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_prepare_check_pack_check(prepare_flags, tmp_path, capsys):
    code, plan = run_json(capsys, *prepare_flags, "--dry_run")
    assert code == 0
    assert plan["parameters"]["dupe_factor"] == 3
    assert not (tmp_path / "out").exists()
    code, manifest = run_json(capsys, *prepare_flags)
    assert code == 0
    assert manifest["implementations"] == ["masking: c", "tokenization: c"]
    code, report = run_json(capsys, "data", "check", str(tmp_path / "out"))
    assert (code, report["problems"]) == (0, [])
    pack = ("data", "pack", str(tmp_path / "out"), "--output", str(tmp_path / "packed"))
    code, plan = run_json(capsys, *pack, "--samples", "50", "--dry_run")
    assert (code, plan["samples_after"]) == (0, 50)
    code, manifest = run_json(capsys, *pack, "--samples", "50")
    assert (code, manifest["train"]["samples"]) == (0, 50)
    code, report = run_json(capsys, "data", "check", str(tmp_path / "packed"))
    assert (code, report["problems"]) == (0, [])


def test_the_same_command_again_says_that_all_is_there(prepare_flags, tmp_path, capsys):
    assert main(prepare_flags) == 0
    assert capsys.readouterr().out.startswith(f"prepared {tmp_path / 'out'}\n")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert main(prepare_flags) == 0
    assert capsys.readouterr().out.startswith(f"already there: {tmp_path / 'out'}, made from")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert run_json(capsys, *prepare_flags)[1]["train"]["samples"] > 0


def test_check_exits_1_and_names_the_shard(prepare_flags, tmp_path, capsys):
    main(prepare_flags)
    folder = tmp_path / "out" / "2_shards_uncompressed"
    shutil.copy(folder / "part_0_of_2.hdf5", folder / "part_1_of_2.hdf5")
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM 2_shards_uncompressed/part_1_of_2.hdf5: " in shown
    assert "occur before" in shown
    code, report = run_json(capsys, "data", "check", str(tmp_path / "out"))
    assert code == 1
    assert report["problems"][0]["file"].startswith("2_shards_uncompressed/part_1")


def test_a_slow_path_is_said_aloud_and_recorded(prepare_flags, tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise NativeUnavailable("no C compiler found; install gcc")

    monkeypatch.setattr(masking, "load", missing)
    assert main([*prepare_flags, "--processes", "1"]) == 0
    note = "masking: python: no C compiler found; install gcc"
    assert f"note: slow path used for {note}" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert note in manifest["implementations"]


def test_progress_is_on_standard_error_and_plain_when_piped(prepare_flags, capsys):
    main(prepare_flags)
    captured = capsys.readouterr()
    assert "create samples, parts: 2 done" in captured.err
    assert "\x1b" not in captured.err + captured.out
    assert "random_next_fraction" in captured.out


def test_refusals_exit_2(prepare_flags, tmp_path, capsys):
    assert main(["data", "prepare", "--text", "nowhere", "--output", "x", "--vocab", "y"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["data", "prepare", "--txt", "nowhere"]) == 2
    assert "unknown flag --txt; did you mean --text?\n" in capsys.readouterr().err
    assert main(["data", "brew"]) == 2
    assert "unknown verb 'brew'" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "no train data" in capsys.readouterr().err


def test_a_path_that_reads_as_an_option(prepare_flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").rename(tmp_path / "-dash.txt")
    prepare_flags[3] = "-dash.txt"
    assert main(prepare_flags) == 2
    assert "-dash.txt is a file, but reads as an option: name it ./-dash.txt" in (
        capsys.readouterr().err
    )
    prepare_flags[3] = "./-dash.txt"
    assert main(prepare_flags) == 0


def test_text_with_few_pairs_is_said_aloud(prepare_flags, tmp_path, capsys):
    single = [[s] for d in articles(300) for s in d][:300]
    write_plain(tmp_path / "text.txt", [*single, *articles(15, seed=5)])
    prepare_flags[prepare_flags.index("--eval_fraction") + 1] = "0"
    assert main(prepare_flags) == 0
    assert "note: training text: 9" in capsys.readouterr().err


def test_help_of_each_verb(capsys):
    for verb in ("prepare", "pack", "check", "quickstart"):
        with pytest.raises(SystemExit) as stopped:
            main(["data", verb, "--help"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert "--dry_run" in shown
        assert "--json" in shown
    assert main(["data"]) == 2
    assert main(["data", "--help"]) == 0


def test_quickstart_dry_run_fetches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "cache"))
    code, plan = run_json(capsys, "data", "quickstart", "--dry_run", "--vocab_size", "5000")
    assert (code, plan["ready"], plan["vocab_size"]) == (0, False, 5000)
    assert not (tmp_path / "cache").exists()
