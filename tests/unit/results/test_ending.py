# SPDX-License-Identifier: Apache-2.0
"""The end of a run: a sentence that a person reads, few figures, and what to do next."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.benchmark import BertPretraining
from bertbench.benchmarks.bert_pretraining.data import PretrainingSource
from bertbench.common.config.recipe import recipe_hash
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.prepare.quickstart import QuickstartOptions, quickstart_plan
from bertbench.common.report import ending
from bertbench.common.results import machines
from bertbench.common.results.machines import Machine, reference
from bertbench.common.training.console import ConsoleObserver
from bertbench.common.training.events import EvalEvent, RunSummary

EPYC = Machine(
    recipe="mini", recipe_hash="b199", recipe_alone="65fe", precision="bf16", device="AMD EPYC",
    devices=1, cores=2, runs=10, samples=12_000, time_to_target_s=136.9, sequences_per_second=98.35,
)  # fmt: skip
SETTINGS = resolve("mini", ["--backend", "cpu_ref"])
METRICS = (
    metric("run_time_s", 114.1),
    metric("e2e_time_s", 117.0),
    metric("sequences_per_second", 104.78234),
    metric("real_tokens_per_second", 11_555.724),
    metric("peak_memory_bytes", 2_025_172_992),
    metric("mfu", 0.4123),
    metric("inference_latency_p50_s", 0.2),
    Metric(
        name="mlm_accuracy", value=0.12261, unit="1", direction="higher", clock="none",
        scope="global", definition="last evaluation",
    ),
)  # fmt: skip
REACHED = RunSummary(
    status="ok", reason="target reached at 11200 samples", step=700, samples=11_200,
    metrics=(metric("time_to_target_s", 114.1), *METRICS),
)  # fmt: skip
MISSED = replace(
    REACHED, status="below_quality", metrics=METRICS,
    reason="max_steps reached before the target 0.12 (best 0.08896)",
)  # fmt: skip


def evaluation(value: float) -> EvalEvent:
    return EvalEvent(
        step=700, samples=11_200, metrics={"mlm_accuracy": value}, target_metric="mlm_accuracy",
        target_value=0.12, reached=value >= 0.12, eval_s=1.0, time_s=114.0,
    )  # fmt: skip


def shown(summary: RunSummary = REACHED, value: float = 0.12261, **given: object) -> list[str]:
    evals = [evaluation(0.08896), evaluation(value)]
    return ending.lines(summary, evals, SETTINGS, **given)  # type: ignore[arg-type]


def test_a_run_ends_with_a_sentence_and_few_figures() -> None:
    sentence, *figures = shown(machine=EPYC)
    assert " ".join(sentence.split()) == (
        "reached mlm_accuracy 0.1226 of 0.12 after 11,200 samples in 114 s: 1.2 times as fast as "
        "the reference machine (AMD EPYC, 2 cores; median of 10 runs)"
    )
    assert figures == [
        "  speed     104.8 sequences/s, 11,556 real tokens/s",
        "  of peak   41.2 % mfu",
        "  memory    1.89 GiB",
    ]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("summary", [REACHED, MISSED])
def test_lines_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int,
    summary: RunSummary,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    console = ConsoleObserver(max_steps=1200, target=0.12)
    console.close(replace(summary, lines=shown(summary, machine=EPYC, columns=ending.width())))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= 5 and max(map(len, printed)) in range(columns - 15, columns + 1)


def test_a_wide_terminal_has_lines_of_eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert ending.width() == 80


def test_without_a_machine_there_is_no_comparison() -> None:
    assert "reference" not in " ".join(shown())


def test_a_missed_target_has_the_same_form_and_a_way_on() -> None:
    sentence, *rest = shown(MISSED, 0.0881, machine=EPYC)
    assert " ".join(sentence.split()) == (
        "missed mlm_accuracy 0.12: reached 0.08896 at best after 11,200 samples in 114 s "
        "(max_steps reached)"
    )
    assert "scores    mlm_accuracy 0.1226" in rest[0]  # which the sentence has not said
    assert "--kernels plain --precision fp32" in " ".join(rest[-1].split())


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("max_steps", "max_steps reached before the target 0.12 (best 0.08896)"),
        ("max_minutes", "--max_minutes 2 is over"),
        ("max_samples_termination", "max_samples_termination reached before the target 0.12"),
    ],
)
def test_a_limit_that_the_user_gave_is_named(flag: str, reason: str) -> None:
    settings = resolve("mini", ["--backend", "cpu_ref", f"--{flag}", "6400"])
    found = ending.lines(replace(MISSED, reason=reason), [evaluation(0.08)], settings)
    assert f"leave out --{flag}, or raise it" in found[-1]


def test_other_ends_say_what_the_run_says() -> None:
    failed = RunSummary(status="failed", reason="x " * 90, step=3, samples=48)
    assert ending.lines(failed, [], SETTINGS)[0] == f"failed: {'x ' * 90}"
    done = replace(REACHED, reason="max_steps reached", metrics=METRICS)
    assert ending.lines(done, [], SETTINGS)[0] == "ok: max_steps reached, 11,200 samples in 114 s"
    no_eval = ending.lines(replace(MISSED, reason="max_steps reached"), [], SETTINGS, columns=99)
    assert no_eval[0].endswith("in 114 s: max_steps reached, no evaluation was due")
    assert "since it was resumed" in shown(resumed=True)[0].replace("\n", " ")


def test_a_machine_is_of_the_same_recipe_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "machines.json"
    other = EPYC._replace(precision="fp32", runs=3)
    more = EPYC._replace(device="B", devices=8, cores=None, runs=12)
    rows = [m._asdict() for m in (EPYC, other, more)]
    monkeypatch.setattr(machines, "MACHINES", file)
    assert reference("bf16", recipe_hash="b199") is None  # an installed copy has no records
    file.write_text("{")
    assert reference("bf16", recipe_hash="b199") is None
    file.write_text(json.dumps({"machines": rows}))
    assert reference("bf16", recipe_hash="b199") == more and more.name == "8 x B"
    assert reference("fp32", recipe_alone="65fe") == other
    assert reference("fp16", recipe_hash="b199") is None
    assert reference("bf16", recipe_hash=None) is None


def test_the_repository_has_a_machine_for_the_first_run() -> None:
    from bertbench.common.config.recipe import recipe_hash

    found = reference("bf16", recipe_alone=recipe_hash(SETTINGS.recipe))
    assert found is not None and found.runs >= 6 and found.cores == 2


def test_the_next_command_stands_before_the_benchmarks_own_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQuAD's end with the reference scripts' JSON, which programs read to the end."""
    settings = resolve("mini", ["--backend", "cpu_ref", "--output_dir", str(tmp_path / "a b")])
    ending.print_end(settings, tmp_path, REACHED, ["MLPerf log  x"])
    printed = capsys.readouterr().out.splitlines()
    assert [printed[0], printed[2]] == [f"record      {tmp_path}", "MLPerf log  x"]
    assert printed[1].endswith(f"bertbench report '{tmp_path / 'a b'}' --output report")
    ending.print_end(settings, tmp_path, MISSED, [])
    assert capsys.readouterr().out == f"record      {tmp_path}\n"


def test_the_reference_was_trained_on_the_quick_starts_data() -> None:
    """Or no run of README's first command would be compared with it."""
    settings = resolve("mini", ["--backend", "cpu_ref"])
    recipe = settings.recipe
    made = QuickstartOptions(
        vocab_size=recipe.model.vocab_size,
        max_seq_length=recipe.max_seq_length,
        max_predictions_per_seq=recipe.max_predictions_per_seq,
        dupe_factor=recipe.quickstart_dupe_factor,
    )
    if not quickstart_plan(made)["ready"]:
        pytest.skip("the quick-start data is not prepared on this machine")
    source = BertPretraining().prepare(settings)
    assert isinstance(source, PretrainingSource)
    assert source.train_files[0].is_relative_to(made.target())
    found = recipe_hash(recipe, data=source.hash(), checkpoint=None)
    assert found in {machine.recipe_hash for machine in machines.machines()}
