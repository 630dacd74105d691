# SPDX-License-Identifier: Apache-2.0
"""The SQuAD scripts: recipe, devices, precision, data, and NVIDIA's positional parameters."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bertbench import backends
from bertbench.backends import probing
from bertbench.benchmarks.bert_squad import launch as squad
from bertbench.benchmarks.bert_squad import positional
from bertbench.benchmarks.bert_squad.flags import FLAGS, translate
from bertbench.benchmarks.bert_squad.launch import USAGE, read
from bertbench.benchmarks.bert_squad.recipes import PRESETS
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.launch.launcher import Launch, main, plan

ROOT = Path(__file__).parents[3]
SCRIPTS = {
    "run_squad_1gpu.sh": "--cards 1gpu --recipe squad_large_1",
    "run_squad_8gpu.sh": "--cards 8gpu --recipe squad_large",
    "run_squad_1gcu.sh": "--cards 1gcu --recipe squad_large_enflame_1",
    "run_squad_8gcu.sh": "--cards 8gcu --recipe squad_large_enflame",
    "run_squad.sh": "--positional",
}
CPU = {"name": "cpu_ref", "ok": True, "reason": "", "accelerator": False, "device_count": 1,
       "device": "a CPU", "precisions": ["bf16", "fp32"]}  # fmt: skip


def device(name: str, count: int, *precisions: str) -> dict[str, Any]:
    able = list(precisions or ("bf16", "tf32", "fp32"))
    return {"name": name, "ok": True, "reason": "", "accelerator": True, "device_count": count,
            "device": f"a {name}", "precisions": able}  # fmt: skip


def absent(name: str) -> dict[str, Any]:
    return {"name": name, "ok": False, "reason": f"no {name} here"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in Enflame's layout, its files empty; the current folder is another one."""
    root = tmp_path / "data"
    for name in ("squad/train-v1.1.json", "squad/dev-v1.1.json", "checkpoint/w.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return root


def go(script: str, argv: str | list[str], found: list[dict[str, Any]], **env: str) -> Launch:
    words = argv.split() if isinstance(argv, str) else argv
    report = {"cores": 16, "backends": [*found, CPU]}
    request = read([*SCRIPTS[script].split(), *words], env)
    return plan(request, env, report, "/venv/bin/python")


def given(launch: Launch) -> tuple[str, dict[str, str]]:
    """The recipe, and what its flags set in the end."""
    words = launch.command[launch.command.index("run") + 1 :]
    return words[0], FLAGS.read(words[1:])[0]


def processes(launch: Launch) -> int:
    flag = [w for w in launch.command if w.startswith("--nproc-per-node=")]
    return int(flag[0].partition("=")[2]) if flag else 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_thin(name: str) -> None:
    text = (ROOT / "scripts" / name).read_text()
    assert 'real="$root/benchmarks/bert_squad/launch.sh"\n' in text
    assert f'exec bash "$real" {SCRIPTS[name]} "$@"\n' in text
    assert os.access(ROOT / "scripts" / name, os.X_OK)
    real = (ROOT / "benchmarks" / "bert_squad" / "launch.sh").read_text()
    assert "bertbench.benchmarks.bert_squad.launch" in real


@pytest.mark.parametrize(
    ("script", "backend", "recipe", "cards"),
    [
        ("run_squad_1gpu.sh", "cuda", "squad_large_1", 1),
        ("run_squad_8gpu.sh", "cuda", "squad_large", 8),
        ("run_squad_1gpu.sh", "rocm", "squad_large_1", 1),
        ("run_squad_8gpu.sh", "corex", "squad_large", 8),
        ("run_squad_1gcu.sh", "gcu", "squad_large_enflame_1", 1),
        ("run_squad_8gcu.sh", "gcu", "squad_large_enflame", 8),
    ],
)
def test_scripts_need_no_argument(
    script: str, backend: str, recipe: str, cards: int, data: Path
) -> None:
    others = [absent("cuda"), device("npu", 16)]
    found = [*(b for b in others if b["name"] != backend), device(backend, 8)]
    launch = go(script, "", found, DATA_PATH=str(data))
    name, flags = given(launch)
    assert name == recipe
    assert processes(launch) == cards
    assert flags == {
        "backend": backend, "data": str(data), "seed": "1", "skip_steps": "5", "log_freq": "20",
        "precision": "tf32",
    }  # fmt: skip
    assert launch.environment["ENFLAME_ENABLE_TF32"] == "true"
    assert any(text == f"{cards} x {backend} (a {backend})" for text in launch.messages)


def test_data_is_looked_for_where_enflames_scripts_do(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    (data.parent / "dataset").mkdir()
    data.rename(data.parent / "dataset" / "pytorch_bert_large")
    launch = go("run_squad_1gcu.sh", "", [device("gcu", 1)])
    assert given(launch)[1]["data"] == "dataset/pytorch_bert_large"


def test_fewer_devices_than_the_name_says(data: Path) -> None:
    env = {"DATA_PATH": str(data)}
    two = [device("gcu", 2)]
    message = r"8 devices and gcu has 2: NPROC=2 .* --backend cpu_ref"
    with pytest.raises(Unsupported, match=message):
        go("run_squad_8gcu.sh", "", two, **env)
    launch = go("run_squad_8gcu.sh", "", two, NPROC="2", **env)
    assert processes(launch) == 2
    assert "global_batch" not in given(launch)[1], "the recipe stays"
    assert any("2 processes instead of 8" in text for text in launch.messages)
    on_cpu = go("run_squad_8gcu.sh", "--backend cpu_ref", two, **env)
    assert (processes(on_cpu), given(on_cpu)[1]["backend"]) == (1, "cpu_ref")
    assert processes(go("run_squad_8gcu.sh", "--device cpu", two, NPROC="2", **env)) == 2


@pytest.mark.parametrize(
    ("script", "found", "message"),
    [
        ("run_squad_8gpu.sh", [absent("cuda"), absent("rocm"), device("gcu", 8)],
         "needs one of cuda, rocm, corex.*no cuda here.*--backend gcu.*--backend cpu_ref"),
        ("run_squad_1gcu.sh", [absent("gcu")], "'gcu' cannot run here: no gcu here.*cpu_ref"),
        ("run_squad_1gcu.sh", [device("cuda", 1)], "unknown backend 'gcu'"),
    ],
)  # fmt: skip
def test_another_device_is_not_taken_instead(
    script: str, found: list[dict[str, Any]], message: str, data: Path
) -> None:
    with pytest.raises(Unsupported, match=message):
        go(script, "", found, DATA_PATH=str(data))


def test_device_of_the_user_wins(data: Path) -> None:
    found = [device("cuda", 8), device("npu", 8)]
    for flag in ("--device npu", "--backend=npu", "--device gpu --device=npu"):
        assert (
            given(go("run_squad_8gpu.sh", flag, found, DATA_PATH=str(data)))[1]["backend"] == "npu"
        )
    launch = go("run_squad_8gcu.sh", "--device gpu", found, DATA_PATH=str(data))
    assert given(launch)[1]["backend"] == "cuda", "a family is not left to each process"


@pytest.mark.parametrize(
    ("argv", "variable", "device_has", "precision", "switch"),
    [
        ("", None, ("tf32",), "tf32", "true"),
        ("", None, ("bf16", "fp32"), "fp32", "true"),
        ("", "false", ("tf32", "fp32"), "fp32", "false"),
        ("", "0", ("tf32", "fp32"), "fp32", "0"),
        ("", "True", ("tf32", "fp32"), "tf32", "True"),
        ("--precision fp32", None, ("tf32",), "fp32", "false"),
        ("--precision fp32", "true", ("tf32",), "fp32", "true"),
        ("--amp", None, ("bf16", "tf32"), "amp", "true"),
        ("--fp16", "false", ("fp16", "fp32"), "fp16", "false"),
    ],
)
def test_precision_follows_enflames_variable(
    argv: str, variable: str | None, device_has: tuple[str, ...], precision: str, switch: str,
    data: Path,
) -> None:  # fmt: skip
    env = {"DATA_PATH": str(data)} | ({} if variable is None else {"ENFLAME_ENABLE_TF32": variable})
    launch = go("run_squad_1gcu.sh", argv, [device("gcu", 1, *device_has)], **env)
    assert given(launch)[1]["precision"] == precision
    assert launch.environment["ENFLAME_ENABLE_TF32"] == switch
    lacking = variable is None and "tf32" not in device_has
    assert ("no TF32" in " ".join(launch.messages)) == lacking


def test_without_data_it_says_where_to_get_it_and_what_runs_without(data: Path) -> None:
    (data / "squad" / "train-v1.1.json").unlink()
    (data / "checkpoint" / "w.pt").unlink()
    with pytest.raises(BadInput) as error:
        go("run_squad_8gcu.sh", "", [device("gcu", 8)], DATA_PATH=str(data))
    said = str(error.value)
    assert "squad_large_enflame lacks\n  train-v1.1.json (--train_file)\n  the weights" in said
    assert "dev-v1.1.json (--predict_file)" not in said, "it is there"
    assert "981b29407e0affa3b1b156f72073b945" in said
    assert "nvidia/bert_pyt_ckpt_large_pretraining_amp_lamb" in said
    small = re.search(r"bertbench run (squad_mini) (.*)", said)
    assert small is not None
    offered, _ = translate(small[2].split(), PRESETS[small[1]].recipe, 1)  # type: ignore[arg-type]
    assert offered == ["--train_file", "train-v1.1.json",
                       "--predict_file", str(data / "squad" / "dev-v1.1.json")]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "removed"),
    [
        ("--do_predict --do_eval", "squad/train-v1.1.json"),
        ("--do_train", "squad/dev-v1.1.json"),
        ("--starts_from random", "checkpoint/w.pt"),
        ("--recipe squad_mini", "checkpoint/w.pt"),
        ("--train_file {data}/squad/dev-v1.1.json", "squad/train-v1.1.json"),
        ("--synthetic", "squad/train-v1.1.json"),
    ],
)
def test_only_what_is_needed_must_be_there(argv: str, removed: str, data: Path) -> None:
    (data / removed).unlink()
    launch = go(
        "run_squad_1gcu.sh", argv.format(data=data), [device("gcu", 1)], DATA_PATH=str(data)
    )
    assert "run" in launch.command
    with pytest.raises(BadInput, match="lacks"):
        go("run_squad_1gcu.sh", "", [device("gcu", 1)], DATA_PATH=str(data))


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        ("", {"DATA_PATH": "/nowhere"}, "DATA_PATH=/nowhere is not a folder"),
        ("--recipe squad_huge", {}, "unknown recipe 'squad_huge'"),
        ("--lerning_rate 1", {}, "did you mean --learning_rate"),
        ("--vocab_file v.txt", {}, "vocabulary .--vocab_file.: v.txt does not exist"),
        ("--init_checkpoint no.pt", {}, "no.pt does not exist"),
        ("--version_2_with_negative", {}, "train-v2.0.json"),
        ("2.0 8", {}, "'2.0' is not a flag"),
        ("", {"NPROC": "0"}, "NPROC=0 is not a count"),
    ],
)
def test_refusals(argv: str, env: dict[str, str], message: str, data: Path) -> None:
    with pytest.raises(BadInput, match=message):
        go("run_squad_1gcu.sh", argv, [device("gcu", 1)], **{"DATA_PATH": str(data), **env})


def test_two_checkpoints_are_one_too_many(data: Path) -> None:
    (data / "checkpoint" / "x.pt").touch()
    env = {"DATA_PATH": str(data)}
    with pytest.raises(BadInput, match=r"w.pt, x.pt.*--init_checkpoint"):
        go("run_squad_1gcu.sh", "", [device("gcu", 1)], **env)
    argv = f"--init_checkpoint {data}/checkpoint/x.pt"
    assert go("run_squad_1gcu.sh", argv, [device("gcu", 1)], **env)
    (data / "checkpoint" / "DLE_BERT_FP16_PyT_LAMB_92_hard_scaling_node.pt").touch()
    assert go("run_squad_1gcu.sh", "", [device("gcu", 1)], **env), "Enflame's scripts name this one"


# -- NVIDIA's positional parameters
TODAY = ["c.pt", "2.0", "32", "4.6e-5", "0.2", "fp16", "4", "7", "sq", "v.txt", "out", "train eval",
         "large.json", "50"]  # fmt: skip
BEFORE = [*TODAY[:4], *TODAY[5:]]


def test_both_orders_come_to_the_same() -> None:
    today, before = (positional.read(words, {}) for words in (TODAY, BEFORE))
    assert (today.devices, before.devices) == (4, 4)
    assert FLAGS.read(today.flags)[0] == {
        "num_train_epochs": "2.0", "global_batch": "128", "max_micro_batch": "32",
        "eval_batch_size": "32", "learning_rate": "4.6e-5", "warmup_proportion": "0.2",
        "precision": "fp16", "seed": "7", "max_steps": "50", "log_freq": "50",
        "init_checkpoint": "c.pt", "vocab_file": "v.txt", "output_dir": "out",
        "bert_config_path": "large.json", "train_file": "sq/train-v1.1.json",
        "predict_file": "sq/dev-v1.1.json",
    }  # fmt: skip
    at = today.flags.index("0.2")
    assert before.flags == [*today.flags[:at], "0.1", *today.flags[at + 1 :]]
    assert "14 parameters, in today's order" in today.messages[0]
    assert "13 parameters, in the order of 2021" in before.messages[0]
    for said, words in ((today.messages, TODAY), (before.messages, BEFORE)):
        for name, word in zip(
            [n for n in positional.DEFAULTS if len(words) == 14 or n != "warmup_proportion"],
            words, strict=True,
        ):  # fmt: skip
            assert f"  {name}={word}" in said, "echoed by name"


def test_the_folder_holds_the_version_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("train-v2.0.json", "dev-v2.0.json", "c.pt"):
        (tmp_path / name).touch()
    words = ["c.pt", *[""] * 7, str(tmp_path), *[""] * 5]
    words[0] = str(tmp_path / "c.pt")
    launch = go("run_squad.sh", [*words, "--version_2_with_negative"], [device("cuda", 8)])
    flags = given(launch)[1]
    assert flags["train_file"] == str(tmp_path / "train-v2.0.json")
    with pytest.raises(BadInput, match=r"train-v1\.1\.json does not exist"):
        go("run_squad.sh", words, [device("cuda", 8)])


@pytest.mark.parametrize("number", range(15))
def test_parameters_that_are_left_out_have_their_defaults(number: int) -> None:
    some = positional.read(TODAY[:number], {})
    values = FLAGS.read(some.flags)[0]
    assert values["learning_rate"] == ("4.6e-5" if number > 3 else "3e-5")
    assert values["warmup_proportion"] == ("0.2" if number > 4 else "0.1")
    assert some.devices == (4 if number > 6 else 8)
    assert values["seed"] == ("7" if number > 7 else "1")
    assert ("init_checkpoint" in values) == (number > 0)
    assert sum("(default)" in text for text in some.messages) == 14 - number
    assert positional.read([*TODAY[:number], *[""] * (14 - number)], {}).flags == some.flags


@pytest.mark.parametrize("number", range(5, 14))
def test_the_older_order_is_seen_from_its_precision_on(number: int) -> None:
    some = positional.read(BEFORE[:number], {})
    assert "order of 2021" in some.messages[0]
    assert some.devices == (4 if number > 5 else 8)


def test_an_empty_fifth_parameter_is_told_by_the_sixth() -> None:
    older = positional.read([*BEFORE[:4], "", "2"], {})
    assert (older.devices, "2021" in older.messages[0]) == (2, True)
    newer = positional.read([*TODAY[:4], "", "fp32", "2"], {})
    assert (newer.devices, "--precision fp32" in " ".join(newer.flags)) == (2, True)


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("train", {"do_train": "True"}),
        ("eval", {"do_predict": "True", "do_eval": "True"}),
        ("prediction", {"do_predict": "True"}),
        ("train eval", {}),
        ("all of it", {}),
    ],
)
def test_modes(mode: str, parts: dict[str, str]) -> None:
    values = FLAGS.read(positional.read([*TODAY[:11], mode], {}).flags)[0]
    assert {k: v for k, v in values.items() if k.startswith("do_")} == parts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TODAY, "more"], "takes 14 parameters"),
        ([*BEFORE, "more"], "takes 13 parameters"),
        ([*TODAY[:4], "warm"], "parameter 5 of run_squad.sh is 'warm'"),
        ([*TODAY[:5], "fp64"], "precision 'fp64'.*parameter 6 of 14"),
        ([*TODAY[:6], "all"], "num_gpu: 'all' is not a number"),
        (["c.pt", "2", "0"], "batch_size is 0"),
        (["c.pt", "2", "4.5"], "batch_size: '4.5' is not a whole number"),
    ],
)
def test_parameters_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        positional.read(words, {})


def test_run_squad_sh_takes_parameters_then_flags(data: Path) -> None:
    words = [str(data / "checkpoint" / "w.pt"), "1.0", "16", "3e-5", "fp32", "2", "", "", "", "",
             "eval", "--predict_batch_size", "64"]  # fmt: skip
    launch = go("run_squad.sh", words, [device("npu", 2)], DATA_PATH=str(data))
    name, flags = given(launch)
    assert (name, processes(launch)) == ("squad_large", 2)
    assert (flags["global_batch"], flags["eval_batch_size"]) == ("32", "64")
    assert (flags["precision"], flags["backend"], flags["data"]) == ("fp32", "npu", str(data))
    assert launch.environment["ENFLAME_ENABLE_TF32"] == "false"
    assert "  num_gpu=2" in launch.messages
    assert go("run_squad.sh", "--recipe squad_base", [device("npu", 8)], DATA_PATH=str(data))
    with pytest.raises(Unsupported, match="8 devices and npu has 2"):
        go("run_squad.sh", [], [device("npu", 2)], DATA_PATH=str(data))


def test_what_is_missing_is_told_beside_what_each_parameter_was_taken_for(data: Path) -> None:
    with pytest.raises(BadInput, match=r"(?s)init_checkpoint=c.pt.*squad_dir=sq.*sq/train-v1.1"):
        go("run_squad.sh", TODAY, [device("npu", 8)], DATA_PATH=str(data))
    prepared = positional.read([], {"BERT_PREP_WORKING_DIR": "prep"})
    assert "prep/download/squad/v1.1/dev-v1.1.json" in prepared.flags


# -- from the script to the refusal
def test_refusals_of_the_script(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_PATH", raising=False)
    assert main(["--cards", "1gcu", "--recipe", "squad_large_enflame_1"], USAGE, read) == 2
    assert "squad_large_enflame_1 lacks" in capsys.readouterr().err
    assert main(["--cards", "many"], USAGE, read) == 2
    assert main(["--help"], USAGE, read) == 0
    assert "bash scripts/run_squad_{1,8}{gpu,gcu}.sh" in capsys.readouterr().out


def test_the_doctor_is_asked_with_the_variable_that_the_run_will_have(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[str], str]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> Any:
        asked.append((command[1:], env[squad.TF32_SWITCH]))
        return subprocess.CompletedProcess(command, 1, "", "nothing works")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("DATA_PATH", str(data))
    monkeypatch.delenv(squad.TF32_SWITCH, raising=False)
    assert main("--cards 1gcu --precision fp32".split(), USAGE, read) == 2
    assert main("--cards 8gpu".split(), USAGE, read) == 2
    assert "nothing works" in capsys.readouterr().err
    assert asked == [(["doctor", "--json", "gcu"], "false"), (["doctor", "--json"], "true")]


def test_gpu_is_any_backend_of_that_family(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(names: list[str], **_: object) -> dict[str, dict[str, Any]]:
        assert tuple(names) == ("cuda", "rocm", "corex")
        return {name: {"ok": name == works, "reason": f"no {name}"} for name in names}

    monkeypatch.setattr(probing, "examine", examine)
    works = "rocm"
    assert backends.resolve("gpu").name == "rocm"
    works = ""
    with pytest.raises(Unsupported, match=r"no gpu found; .*\n  cuda: no cuda.*\n  rocm: no rocm"):
        backends.resolve("gpu")
