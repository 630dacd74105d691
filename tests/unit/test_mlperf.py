# SPDX-License-Identifier: Apache-2.0
"""Our logs pass MLPerf's own checker, and its verdicts are told in plain sentences."""

from __future__ import annotations

import json
import logging
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bertbench.common.errors import BadInput
from bertbench.common.mlperf.compliance import RULESETS, check_log
from bertbench.common.mlperf.log import MlperfLog, bert_tensors, read_log
from bertbench.common.training.events import EvalEvent, RunSummary, StepEvent

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mlperf_logs" / "bert-logs.tar.xz"
CLOSED = ("1.0.0", "3.0.0", "3.1.0", "4.0.0", "4.1.0", "5.0.0")
VALUES = {
    "global_batch_size": 448,
    "gradient_accumulation_steps": 1,
    "opt_base_learning_rate": 4.25e-4,
    "opt_epsilon": 1e-6,
    "opt_lamb_epsilon": 1e-6,
    "opt_lamb_beta_1": 0.9,
    "opt_lamb_beta_2": 0.999,
    "opt_lamb_weight_decay_rate": 0.01,
    "opt_learning_rate_training_steps": 6700,
    "opt_learning_rate_warmup_steps": 0,
    "num_warmup_steps": 0,
    "start_warmup_step": 0,
}


def make(path: Path, **changed: Any) -> MlperfLog:
    arguments: dict[str, Any] = {
        "division": "closed",
        "org": "bertbench",
        "platform": "1 x test",
        "status": "onprem",
        "seed": 42,
        "values": VALUES,
    }
    return MlperfLog(path, **(arguments | changed))


def step(samples: int) -> StepEvent:
    return StepEvent(
        step=samples // 448,
        samples=samples,
        loss=1.5,
        metrics={},
        learning_rate=1e-4,
        grad_norm=None,
        loss_scale=None,
        skipped_steps=0,
        window_steps=1,
        window_s=1.0,
        sequences_per_second=448.0,
        real_tokens_per_second=1.0,
        padded_tokens_per_second=1.0,
        data_wait_s=0.0,
        time_s=1.0,
    )


def evaluate(log: MlperfLog, samples: int, accuracy: float) -> None:
    log.eval_start(step=samples // 448, samples=samples)
    log.on_eval(
        EvalEvent(
            step=samples // 448,
            samples=samples,
            metrics={"mlm_accuracy": accuracy, "num_samples": 10_000.0},
            target_metric="mlm_accuracy",
            target_value=0.72,
            reached=accuracy >= 0.72,
            eval_s=1.0,
            time_s=1.0,
        )
    )


def begin(log: MlperfLog, samples: int = 0) -> None:
    log.init_start()
    log.init_stop()
    log.run_start(step=samples // 448, samples=samples)


def end(log: MlperfLog, samples: int, status: str = "success") -> None:
    log.run_stop(step=samples // 448, samples=samples, status=status)
    log.close(RunSummary(status="ok", reason="", step=samples // 448, samples=samples))


def write(path: Path, accuracies: dict[int, float], **changed: Any) -> Path:
    log = make(path, **changed)
    begin(log)
    for samples, accuracy in accuracies.items():
        log.on_step(step(samples))
        evaluate(log, samples, accuracy)
    end(log, max(accuracies), "success" if max(accuracies.values()) >= 0.72 else "aborted")
    return path


def events(path: Path) -> list[dict[str, Any]]:
    found = [event for _, event in read_log(path.read_text().splitlines())]
    assert None not in found
    return [event for event in found if event is not None]


CURVE = {150_080: 0.373, 1_200_192: 0.708, 2_500_288: 0.7203}


@pytest.mark.parametrize("ruleset", CLOSED)
def test_a_converged_log_passes_as_closed(tmp_path: Path, ruleset: str) -> None:
    log = write(tmp_path / "result_0.txt", CURVE)
    assert check_log(log, ruleset, "closed") == []


@pytest.mark.parametrize("ruleset", RULESETS)
def test_with_the_tensors_named_every_round_passes(tmp_path: Path, ruleset: str) -> None:
    log = write(tmp_path / "result_0.txt", CURVE, weights=bert_tensors(24))
    assert check_log(log, ruleset, "closed") == []


@pytest.mark.parametrize("ruleset", CLOSED)
def test_an_unconverged_log_passes_as_open_only(tmp_path: Path, ruleset: str) -> None:
    curve = {150_080: 0.373, 300_160: 0.40}
    log = write(tmp_path / "open.txt", curve, division="open")
    assert check_log(log, ruleset, "open") == []
    assert "not closed" in check_log(log, ruleset, "closed")[0]
    closed = write(tmp_path / "closed.txt", curve)
    assert check_log(closed, ruleset) == [
        "closed.txt: no eval_accuracy in [0.72, 1) (best 0.40000 after 300160 samples): a closed "
        "run must reach the target; train longer, or use --division open"
    ]
    assert check_log(closed, ruleset, converged=False) == []


def test_what_is_logged_is_what_happened(tmp_path: Path) -> None:
    log = events(write(tmp_path / "log", CURVE, caches_cleared=True, weights=["a", "b"]))
    by_key = {event["key"]: event for event in log}
    count = Counter(event["key"] for event in log)
    assert by_key["cache_clear"]["value"] is True
    assert by_key["seed"]["value"] == 42
    assert by_key["opt_base_learning_rate"]["value"] == 4.25e-4
    assert by_key["train_samples"]["value"] == 2_500_288
    assert by_key["eval_samples"]["value"] == 10_000
    assert by_key["run_stop"]["metadata"]["status"] == "success"
    assert by_key["tracked_stats"]["value"]["throughput"] == 448.0
    assert count["weights_initialization"] == 2
    accuracies = [e for e in log if e["key"] == "eval_accuracy"]
    assert {e["metadata"]["epoch_num"]: e["value"] for e in accuracies} == CURVE
    order = [e["key"] for e in log]
    wanted = ["init_start", "init_stop", "run_start", "block_start", "eval_start", "eval_accuracy"]
    wanted += ["eval_stop", "block_stop", "train_samples", "run_stop"]
    places = [order.index(name) for name in wanted]
    assert places == sorted(places)
    for event in log:
        assert event["metadata"]["file"] == "common/mlperf/log.py"
        assert event["metadata"]["lineno"] > 0


def test_initialisation_begins_when_it_really_did(tmp_path: Path) -> None:
    began = time.monotonic() - 1e8
    log = events(write(tmp_path / "log", CURVE, began=began))
    times = {event["key"]: event["time_ms"] for event in log}
    assert times["cache_clear"] == times["init_start"]
    assert times["init_start"] == pytest.approx(1e3 * (time.time() - 1e8), abs=60e3)
    assert times["init_stop"] > times["init_start"]
    (late,) = check_log(tmp_path / "log", "5.0.0", "closed")  # years of initialisation
    assert "init_stop breaks the rule" in late


def test_nothing_of_the_global_logging_changes(tmp_path: Path) -> None:
    before = (list(logging.root.handlers), set(logging.root.manager.loggerDict))
    write(tmp_path / "log", CURVE)
    assert (list(logging.root.handlers), set(logging.root.manager.loggerDict)) == before


def test_a_log_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "log", CURVE)
    with pytest.raises(FileExistsError):
        make(tmp_path / "log")


def test_a_run_that_raises_is_logged_as_aborted(tmp_path: Path) -> None:
    log = make(tmp_path / "log", division="open")
    begin(log)
    evaluate(log, 150_080, 0.3)
    log.on_step(step(200_256))
    log.close(RunSummary(status="failed", reason="diverged", step=447, samples=200_256))
    found = {event["key"]: event for event in events(tmp_path / "log")}
    assert found["run_stop"]["metadata"]["status"] == "aborted"
    assert found["train_samples"]["value"] == 200_256
    assert check_log(tmp_path / "log", "5.0.0", "open") == []


def test_tensor_names_are_bert_larges_398() -> None:
    names = bert_tensors(24)
    assert len(names) == len(set(names)) == 398


# -- resuming --------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_log_reads_as_one_run(tmp_path: Path, killed: bool) -> None:
    first = make(tmp_path / "first")
    begin(first)
    evaluate(first, 150_080, 0.37)
    first.on_step(step(200_256))  # the checkpoint
    evaluate(first, 300_160, 0.4)  # lost: after the checkpoint
    if killed:
        with (tmp_path / "first").open("a") as file:
            file.write(':::MLLOG {"namespace": "", "time_')
    else:
        end(first, 310_016, "aborted")
    second = make(tmp_path / "second", previous=tmp_path / "first")
    begin(second, 200_256)
    evaluate(second, 300_160, 0.41)
    evaluate(second, 450_240, 0.73)
    end(second, 450_240)
    assert check_log(tmp_path / "second", "5.0.0", "closed") == []
    log = events(tmp_path / "second")
    accuracies = [e["value"] for e in log if e["key"] == "eval_accuracy"]
    assert accuracies == [0.37, 0.41, 0.73]
    stats = [e["metadata"]["epoch_num"] for e in log if e["key"] == "tracked_stats"]
    assert stats == [200_256]
    counts = Counter(e["key"] for e in log)
    for once in ("run_start", "run_stop", "init_stop", "resumed", "seed", "block_start"):
        assert counts[once] == 1
    started = [e["time_ms"] for e in events_of(tmp_path / "first") if e["key"] == "run_start"]
    assert [e["time_ms"] for e in log if e["key"] == "run_start"] == started


def events_of(path: Path) -> list[dict[str, Any]]:
    return [event for _, event in read_log(path.read_text().splitlines()) if event is not None]


def test_a_resumed_log_needs_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none is missing.*resume from a complete run folder"):
        make(tmp_path / "log", previous=tmp_path / "none")
    assert not (tmp_path / "log").exists()


def test_a_log_that_begins_in_the_middle_is_refused(tmp_path: Path) -> None:
    log = make(tmp_path / "log")
    begin(log, 448_000)
    evaluate(log, 450_240, 0.73)
    end(log, 450_240)
    assert "continues another after 448000 samples" in check_log(tmp_path / "log", "5.0.0")[0]


# -- the checker's verdicts ------------------------------------------------------------------


def without(path: Path, *keys: str) -> Path:
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line.split("MLLOG ")[1])["key"] not in keys]
    path.write_text("".join(kept))
    return path


def test_missing_and_repeated_keys_are_named(tmp_path: Path) -> None:
    log = without(write(tmp_path / "log", CURVE), "opt_lamb_epsilon", "run_stop")
    with log.open("a") as file:
        file.write(log.read_text().splitlines()[2].replace("bert", "dlrm") + "\n")
    found = "\n".join(check_log(log, "5.0.0"))
    assert "log: opt_lamb_epsilon is missing: log it once" in found
    assert "log: run_stop is missing: the run was cut short" in found
    assert "submission_benchmark occurs 2 times with different values" in found


def test_damaged_lines_are_found_by_number(tmp_path: Path) -> None:
    log = write(tmp_path / "log", CURVE)
    lines = log.read_text().splitlines()
    lines.insert(3, "something printed")
    lines[5] = lines[5][:60]
    log.write_text("\n".join(lines))
    assert "log: line 6 is cut or damaged: log the run again" in check_log(log, "5.0.0")


def test_a_broken_rule_names_the_line(tmp_path: Path) -> None:
    values = VALUES | {"gradient_accumulation_steps": 0}
    log = write(tmp_path / "log", CURVE, values=values)
    log.write_text("printed first\n" + log.read_text())
    line = next(
        n for n, e in read_log(log.read_text().splitlines())
        if e is not None and e["key"] == "gradient_accumulation_steps"
    )  # fmt: skip
    assert check_log(log, "5.0.0") == [
        f"log: line {line}: gradient_accumulation_steps breaks the rule `v['value'] > 0`"
    ]


def test_a_value_of_the_wrong_kind(tmp_path: Path) -> None:
    values = VALUES | {"gradient_accumulation_steps": "many"}
    (found,) = check_log(write(tmp_path / "log", CURVE, values=values), "5.0.0")
    assert "the rule `v['value'] > 0` cannot be applied to: :::MLLOG" in found


def test_wrong_tensors_are_told(tmp_path: Path) -> None:
    log = write(tmp_path / "log", CURVE, weights=bert_tensors(23))
    assert check_log(log, "2.0.0") == [
        "log: weights_initialization does not name exactly the 398 tensors of BERT-large"
    ]


def test_escapes_from_a_log_do_not_reach_the_terminal(tmp_path: Path) -> None:
    log = write(tmp_path / "log", CURVE, division="\x1b[31mred\n")  # type: ignore[arg-type]
    for problem in check_log(log, "5.0.0", "open"):
        assert problem.isprintable()


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    log = write(tmp_path / "log", CURVE)
    with pytest.raises(BadInput, match=r"MLPerf ruleset '5\.1\.0' has no BERT"):
        check_log(log, "5.1.0")
    with pytest.raises(BadInput, match="cannot read"):
        check_log(tmp_path / "none", "5.0.0")
    (tmp_path / "empty").write_text("")
    assert any("run_start is missing" in p for p in check_log(tmp_path / "empty", "5.0.0"))


# -- real logs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SHARED.exists():
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    folder = tmp_path_factory.mktemp("logs")
    with tarfile.open(SHARED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    ("pattern", "ruleset", "wanted"),
    [
        ("v1.0/NVIDIA/**/result_*.txt", "1.0.0", []),
        ("v1.0/NVIDIA/**/result_0.txt", "5.0.0", ["opt_lamb_epsilon is missing"]),
        ("v3.0/NVIDIA/**/result_0.txt", "3.0.0", []),
        ("v3.0/NVIDIA/**/result_0.txt", "5.0.0", []),
        ("v3.0/Intel-HabanaLabs/**/result_0.txt", "3.0.0", []),
        ("v1.0/Supermicro/**/result_1.txt", "1.0.0", ["no eval_accuracy in [0.72, 1) (best"]),
        ("v2.1/HPE/**/result_4.txt", "2.1.0", ["run_stop is missing: the run was cut short"]),
    ],
)
def test_published_logs(real: Path, pattern: str, ruleset: str, wanted: list[str]) -> None:
    logs = sorted(real.glob(pattern))
    assert logs
    for log in logs:
        assert all(event is not None for _, event in read_log(log.open(encoding="latin-1")))
        problems = "\n".join(check_log(log, ruleset, "closed"))
        assert all(text in problems for text in wanted), problems
        assert wanted or not problems
