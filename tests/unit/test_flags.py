# SPDX-License-Identifier: Apache-2.0
"""Every flag of the reference scripts is mapped, noted or refused, and the last one wins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from bertbench.benchmarks import presets, resolve
from bertbench.benchmarks.bert_pretraining import flags
from bertbench.benchmarks.bert_pretraining.flags import translate
from bertbench.benchmarks.bert_pretraining.recipes import PRESETS
from bertbench.benchmarks.bert_pretraining.reference_flags import REFERENCE
from bertbench.common.cli import main as cli
from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput, Unsupported

# Name -> a value it takes, or None for a switch. Sources: the argument parsers of MLPerf Training
# v1.0 NVIDIA/benchmarks/bert, DeepSparkHub models/nlp/language_model/bert and v5.0 NVIDIA.
NVIDIA_V1 = {
    "input_dir": "/d", "output_dir": "/o", "eval_dir": "/e", "init_checkpoint": "/c.pt",
    "init_tf_checkpoint": "/c", "bert_config_path": "/b.json", "bert_model": "bert-large-uncased",
    "resume_from_checkpoint": None, "eval_iter_start_samples": "150000",
    "eval_iter_samples": "150000", "num_eval_examples": "10000", "cache_eval_data": None,
    "eval_batch_size": "128", "target_mlm_accuracy": "0.720",
    "train_mlm_accuracy_window_size": "0", "max_seq_length": "512",
    "max_predictions_per_seq": "76", "train_batch_size": "18", "gradient_accumulation_steps": "2",
    "learning_rate": "4e-5", "weight_decay_rate": "0.01", "opt_lamb_beta_1": "0.9",
    "opt_lamb_beta_2": "0.999", "max_steps": "1536", "max_samples_termination": "14000000",
    "warmup_proportion": "0.01", "warmup_steps": "0.0", "start_warmup_step": "-25", "seed": "42",
    "fp16": None, "loss_scale": "0", "do_train": None, "phase2": None,
    "checkpoint_activations": None, "num_epochs_to_generate_seeds_for": "2", "log_freq": "1.0",
    "skip_checkpoint": None, "keep_n_most_recent_checkpoints": "20",
    "num_samples_per_checkpoint": "500000", "min_samples_to_start_checkpoints": "3000000",
    "local_rank": "-1", "use_env": None, "use_ddp": None, "ddp_type": "native",
    "use_gradient_as_bucket_view": None, "allreduce_post_accumulation": None,
    "allreduce_post_accumulation_fp16": None, "distributed_lamb": None, "dwu-group-size": "0",
    "dwu-num-blocks": "4", "dwu-num-chunks": "1", "dwu-num-rs-pg": "2", "dwu-num-ar-pg": "4",
    "dwu-num-ag-pg": "2", "dwu-overlap-reductions": None, "dwu-e5m2-allgather": None,
    "unpad": None, "unpad_fmha": None, "pad": None, "exchange_padding": None, "fused_mha": None,
    "no-fused_mha": None, "fused_gelu_bias": None, "fused_dropout_add": None,
    "dense_seq_output": None, "enable_fuse_dropout": None, "disable_fuse_mask": None,
    "disable_fuse_scale": None, "disable_fuse_qkv": None, "disable_apex_softmax": None,
    "enable_stream": None, "use_cuda_graph": None, "cuda_graph_mode": "segmented",
    "max_iterations_per_graph": "4", "bypass_amp": None,
}  # fmt: skip
DEEPSPARK = {"opt_level": "O2", "dist_backend": "gloo", "verify_checkpoint": None}
NVIDIA_V5 = {
    "packed_samples": None, "order_samples": None, "max_pack_factor": "3",
    "average_packing_rate": "2", "pad_fmha": None, "fused_bias_fc": None,
    "fused_bias_fc_loss_head": None, "fused_bias_mha": None, "fused_gemm_gelu": None,
    "use_transformer_engine": None, "use_transformer_engine2": None, "eval_cuda_graph": None,
    "load_eval_synchronously": None, "synthetic_input": None, "sustained_training_time": "0",
}  # fmt: skip
DLE = {
    "num_train_epochs": "3", "resume_step": "-1", "amp": None,
    "num_steps_per_checkpoint": "200", "phase1_end_step": "7038", "init_loss_scale": "1048576",
    "json-summary": "results/dllogger.json", "disable_progress_bar": None, "steps_this_run": "9",
    "profile": None, "profile-start": "0", "num_workers": "4", "no_dense_sequence_output": None,
    "disable_jit_fusions": None, "cuda_graphs": None, "vocab_file": "v", "resume_phase2": None,
    "lamb": "5e-5",
}  # fmt: skip
ALIASES = {"dwugs": "0", "dwunb": "1", "dwunc": "1", "dwurspg": "1", "dwuarpg": "1", "dwuagpg": "1"}
EVERY = {**NVIDIA_V1, **DEEPSPARK, **NVIDIA_V5, **DLE, **ALIASES}
REFUSED = {
    "init_tf_checkpoint", "checkpoint_activations", "bypass_amp", "use_transformer_engine",
    "use_transformer_engine2", "lamb", "profile",
}  # fmt: skip

DEEPSPARK_COMMAND = """--init_checkpoint /d/model.ckpt-28252.apex.pt
--input_dir /d/2048_shards_uncompressed --bert_config_path /d/bert_config.json
--eval_dir /d/eval_set_uncompressed --output_dir ./results/train_log --do_train
--eval_iter_start_samples 150000 --eval_iter_samples 150000 --num_eval_examples 10000
--warmup_proportion=0 --warmup_steps=0 --start_warmup_step=0 --phase2 --max_seq_length=512
--max_predictions_per_seq=76 --train_mlm_accuracy_window_size=0 --max_samples_termination=4500000
--log_freq=10 --cache_eval_data --min_samples_to_start_checkpoints 150000
--num_samples_per_checkpoint 150000 --keep_n_most_recent_checkpoints 3 --opt_lamb_beta_1=0.9
--opt_lamb_beta_2=0.999 --weight_decay_rate=0.01 --fused_gelu_bias --dense_seq_output
--dwu-num-rs-pg=1 --dwu-num-ar-pg=1 --dwu-num-blocks=1 --fp16 --fused_mha --distributed_lamb
--dist_backend nccl --exchange_padding --target_mlm_accuracy 0.720 --seed=17103 --skip_checkpoint
--train_batch_size 52 --learning_rate=4.6e-4 --max_steps 7400 --eval_batch_size 52
--gradient_accumulation_steps=2"""


def spell(name: str, value: str | None) -> list[str]:
    return [f"--{name}"] + ([] if value is None else [value])


def test_lists_are_complete() -> None:
    assert len(NVIDIA_V1) == 75
    assert len({**NVIDIA_V1, **DEEPSPARK}) == 78


@pytest.mark.parametrize("name", EVERY)
def test_every_reference_flag_is_known(name: str) -> None:
    argv = spell(name, EVERY[name])
    recipe = PRESETS["mini"].recipe
    if name in REFUSED:
        with pytest.raises(Unsupported, match=f"--{name}"):
            translate(argv, recipe, 1)
        return
    own, notes = translate(argv, recipe, 1)
    assert own or notes, "ignored silently"
    for word in own:
        if word.startswith("--"):
            assert word[2:] in flags.OWN


def test_every_note_and_refusal_names_a_reference_flag() -> None:
    """The table holds nothing that no reference script has."""
    known = {n.replace("-", "_") for n in EVERY} | {"lr", "dwuchks", "config_file"}
    assert set(REFERENCE) <= known


def test_deepspark_command_is_the_recipe_named_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    base = DEEPSPARK_COMMAND.split()
    typed = resolve("deepspark_416", base)
    assert typed.recipe == PRESETS["deepspark_416"].recipe
    assert typed.impl.micro_batch == 26
    assert (typed.impl.precision, typed.impl.dist_backend) == ("fp16", "nccl")
    assert (typed.run.seed, typed.run.log_freq, typed.run.skip_checkpoint) == (17103, 10, True)
    assert any("416" in note for note in typed.notes)
    again = resolve(
        "deepspark_416",
        [*base, "--train_batch_size", "26", "--gradient_accumulation_steps", "1", "--max_steps=9"],
    )
    assert (again.recipe.global_batch, again.impl.micro_batch) == (208, 26)  # type: ignore[attr-defined]
    assert again.recipe.max_steps == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argv", "own"),
    [
        ("--learning_rate 1 --lr=2", "--learning_rate 2"),
        ("--learning-rate 1e-3", "--learning_rate 1e-3"),
        ("--max_steps 7100.0", "--max_steps 7100"),
        ("--max_samples_termination 4.5e6", "--max_samples_termination 4500000"),
        ("--eval_iter_samples -1", "--eval_iter_samples 0"),
        ("--target_mlm_accuracy 0.0", "--target_mlm_accuracy None"),
        ("--start_warmup_step -25", "--start_warmup_step -25"),
        ("--log_freq 0", "--log_freq 2147483647"),
        ("--warmup 0", "--warmup_proportion 0 --warmup_steps 0"),
        ("--warmup 100", "--warmup_proportion 0 --warmup_steps 100"),
        ("--fp16 --precision bf16", "--precision bf16"),
        ("--skip_checkpoint --no-skip_checkpoint", "--no_skip_checkpoint"),
        ("--cache_eval_data=false", "--no_cache_eval_data"),
        ("--resume_from_checkpoint", "--resume last"),
        ("--synthetic_input", "--synthetic"),
        ("--train_batch_size 4 --global_batch 9", "--global_batch 9"),
        ("--global_batch 9 --train_batch_size 4", "--global_batch 8"),
        (
            "--train_batch_size 4 --gradient_accumulation_steps 2",
            "--global_batch 8 --micro_batch 2",
        ),
        ("--gradient_accumulation_steps 4", "--micro_batch 2"),
        ("--gradient_accumulation_steps 4 --micro_batch 3", "--micro_batch 3"),
        ("--packed_samples --train_batch_size 48", "--global_batch 192"),
        ("--average_packing_rate 2 --train_batch_size 48", "--global_batch 96"),
        (
            "--num_steps_per_checkpoint 5 --max_steps 12",
            "--max_steps 12 --num_samples_per_checkpoint 80 --min_samples_to_start_checkpoints 112",
        ),
        ("--steps_this_run 3", "--max_samples_termination 48"),
        ("--amp", "--precision amp"),
        ("--warmup_proportion 0.1", "--warmup_proportion 0.1 --warmup_steps 0"),
        ("--hidden_size 64", "--hidden_size 64"),
        ("--dry-run --json", "--dry_run --json"),
        ("--max_samples 3", "--max_samples_termination 3"),
        ("--seed 1 -h", "--help"),
    ],
)
def test_translation(argv: str, own: str) -> None:
    got, _ = translate(argv.split(), PRESETS["mini"].recipe, 2)  # global batch 16
    assert " ".join(got) == own


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lerning_rate 1", "did you mean --learning_rate"),
        ("--eval_iter 1", "ambiguous: --eval_iter_samples, --eval_iter_start_samples"),
        ("--learning_rate", "needs a value"),
        ("--learning_rate --seed 1", "needs a value"),
        ("7400", "not a flag"),
        ("--max_steps 7.5", "--max_steps: '7.5' is not a whole number"),
        ("--max_steps many", "not a number"),
        ("--skip_checkpoint=maybe", "is a switch"),
        ("--unpad=1", "takes no value"),
        ("--gradient_accumulation_steps 3", "which 3 does not divide"),
        ("--gradient_accumulation_steps 0", "0 does not divide"),
    ],
)
def test_bad_input_names_the_fix(argv: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        translate(argv.split(), PRESETS["mini"].recipe, 2)


@pytest.mark.parametrize(
    "argv",
    [
        "--loss_scale 1024",
        "--resume_step 7",
        "--lamb 1e-4",
        "--profile-start 3",
        "--opt_level O3",
        "--train_mlm_accuracy_window_size 5",
    ],
)
def test_values_that_cannot_be_honoured_are_refused(argv: str) -> None:
    with pytest.raises(Unsupported, match=argv.split()[1]):
        translate(argv.split(), PRESETS["mini"].recipe, 1)


def test_accumulation_without_any_batch_is_refused() -> None:
    with pytest.raises(BadInput, match="--train_batch_size"):
        translate(["--gradient_accumulation_steps", "2"])


def test_world_size_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert translate(["--train_batch_size", "52"])[0] == ["--global_batch", "416"]


# -- the command line as a whole
def test_ctrl_c_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bertbench.common.cli.recipes.list_main", pressed)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "bertbench list: stopped\n"


def test_a_reader_who_has_left_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "list"], stdout=write, stderr=subprocess.PIPE,
        text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, with blanks and wraps normalised."""
    try:
        code = cli.main(list(words))
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), " ".join(captured.err.split())


@pytest.mark.parametrize("verb", cli.VERBS.values(), ids=lambda verb: verb.name)
def test_every_verb_has_help_with_its_summary(verb, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = output_of(capsys, verb.name, "--help")
    assert code == 0 and verb.summary in out
    assert output_of(capsys, "help", verb.name)[:2] == (0, out)
    assert verb.summary in cli.usage()


def test_help_describes_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert "RECIPE one of: mini, " in output_of(capsys, "describe", "--help")[1]
    assert "(default: 1.0)" in output_of(capsys, "help", "compare")[1]
    assert "130 interrupted" in output_of(capsys, "help", "run")[1]
    assert "--learning_rate" in output_of(capsys, "help", "run", "mini")[1]
    assert output_of(capsys, "help")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lst", "bertbench: unknown verb 'lst'; did you mean list? `bertbench help` lists the"),
        ("report --ouut x", "bertbench report: unknown flag --ouut; did you mean --out? usage:"),
        ("rcp x --rule-sets=1", "unknown flag --rule-sets=1; did you mean --ruleset?"),
        ("calibrate --presision fp32", "unknown flag --presision; did you mean --precision?"),
        ("calibrate --num_threads x", "argument --num_threads: invalid int value: 'x' usage:"),
        ("run mini --sed 1", "unknown flag --sed; did you mean --seed"),
        ("run mini --seed x", "bertbench run: --seed: invalid literal for int() with base 10: 'x' "
         "`bertbench run mini --help` lists the flags"),
        ("repeat 2 -- run mini --seed x", "bertbench repeat: --seed: invalid literal"),
        ("data pack x --output y --sed 1", "--sed; did you mean --seed? `bertbench data pack -"),
        ("data chck", "unknown verb 'chck'; did you mean check?"),
    ],
)  # fmt: skip
def test_every_verb_refuses_in_the_same_way(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = output_of(capsys, *words.split())
    assert code == 2 and message in err


@pytest.mark.parametrize("words", ["data pack x --output y --seed x", "run mini --seed x",
                                   "calibrate --num_threads x", "frobnicate"])  # fmt: skip
def test_refusals_for_machines(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words.split(), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "BadInput"


@pytest.mark.parametrize("sign", ["_", "-"])
def test_flags_are_spelled_with_either_sign(sign, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "mini", "--backend", "cpu_ref"]
    assert output_of(capsys, *run, f"--dry{sign}run")[0] == 0
    parser = Parser("report", None)
    parser.add_argument("--no_references", action="store_true")
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args([f"--no{sign}references", "a-b", "--", "--c-d"])
    assert given.no_references and given.rest == ["a-b", "--c-d"]
    assert output_of(capsys, "export_weights", "--help") == output_of(
        capsys, "export-weights", "--help"
    )


def test_version_names_the_release_and_the_commit(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = rf"bertbench {version('bertbench')}( \([0-9a-f]{{12}}(, modified)?\))?"
    assert re.fullmatch(pattern, output_of(capsys, "--version")[1])


def test_list_fits_a_terminal_and_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    known = presets()
    assert [line for line in lines if line[0] != " "] == [*dict.fromkeys(
        p.benchmark for p in known.values()
    )]  # fmt: skip
    assert [line.strip() for line in lines if re.match(r" {2}\S", line)] == list(known)
    assert not any("RECIPE" in line for line in lines)
    assert cli.main(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(known)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shell == "zsh":
        return
    for words, wanted in {
        ("",): set(cli.VERBS),
        ("run", "squad_l"): {name for name in presets() if name.startswith("squad_l")},
        ("data", "c"): {"check"},
        ("run", "mini", "--predict_f"): {"--predict_file"},
        ("report", "--no"): {"--no_references"},
        ("help", "export"): {"export-weights", "export-mlperf"},
    }.items():
        typed = " ".join(["bertbench", *(repr(word) for word in words)])
        asked = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _bertbench; "
        done = subprocess.run(
            ["bash", "-c", asked + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True
        )
        assert wanted <= set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("name", ["output", "out", "output_dir", "output-dir"])
@pytest.mark.parametrize("recipe", ["mini", "squad_mini", "glue_mini"])
def test_the_place_to_write_to_has_one_name_and_those_of_the_scripts(
    recipe: str, name: str
) -> None:
    settings = resolve(recipe, [f"--{name}", "there"])
    assert str(settings.run.output_dir) == "there" and settings.origins["output_dir"] == "flag"


@pytest.mark.parametrize(
    "verb",
    ["report", "calibrate", "infer", "export-weights", "import-weights", "export-onnx",
     "export-mlperf", "import-mlperf", "new-backend", "new-benchmark"],
)  # fmt: skip
def test_every_verb_that_writes_has_output(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert "--output DIR" in shown
    before = {"report": "--out DIR", "export-mlperf": "--out DIR", "calibrate": "--output_dir DIR"}
    assert before.get(verb, "") in shown
