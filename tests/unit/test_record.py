# SPDX-License-Identifier: Apache-2.0
"""A record says what happened, and ``validate`` finds out when it does not."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bertbench.backends.base import DeviceInfo
from bertbench.common.cli.validate import main
from bertbench.common.config.recipe import Recipe, plain, recipe_hash
from bertbench.common.errors import BadInput
from bertbench.common.measure.metric import Metric, metric
from bertbench.common.mlperf.log import MlperfLog
from bertbench.common.results.names import new_run_id
from bertbench.common.results.record import RunRecord, hide_home
from bertbench.common.results.seals import is_written, sealed
from bertbench.common.results.store import load_results
from bertbench.common.results.validate import SCHEMAS, validate
from bertbench.common.training.events import EvalEvent, RunSummary, StepEvent

DEVICE = DeviceInfo(backend="cpu_ref", name="test", index=0, memory_bytes=1)
INPUTS = {"data": "0123", "checkpoint": None}
BATCH = 8
_APART = itertools.count()
"""No two runs are alike."""


@dataclass(frozen=True, kw_only=True)
class Toy(Recipe):
    global_batch: int = BATCH
    rates: tuple[float, ...] = (0.1, 1e-6)


CONFIG: dict[str, Any] = {
    "preset": "toy",
    "benchmark": "bert_pretraining",
    "recipe": plain(Toy()),
    "impl": {"kernels": "plain"},
    "run": {"data": str(Path.home() / "corpus"), "seed": 42},
    "origins": dict.fromkeys(
        ("global_batch", "attention_mask", "extend_positions", "rates", "kernels", "data", "seed"),
        "default",
    ),
    "notes": [],
}


def create(root: Path, **changed: Any) -> RunRecord:
    arguments: dict[str, Any] = {
        "system": "test-1x",
        "benchmark": "bert_pretraining",
        "config": CONFIG,
        "devices": [DEVICE],
        "precision": "bf16",
        "seed": 42,
        "mlperf": {"division": "open", "ruleset": "5.0.0"},
    }
    record = RunRecord.create(root, **(arguments | changed))
    record.identify(
        recipe_hash=recipe_hash(Toy(), **INPUTS),
        recipe_kind="Toy",
        inputs=INPUTS,
        global_batch=BATCH,
    )
    return record


def mlperf_log(record: RunRecord) -> MlperfLog:
    return MlperfLog(
        record.path / "result_0.txt",
        division="open",
        org="o",
        platform="p",
        status="onprem",
        seed=42,
        values={"global_batch_size": BATCH},
    )


def step_event(step: int, window: int, loss: float = 2.0) -> StepEvent:
    return StepEvent(
        step=step,
        samples=step * BATCH,
        loss=loss,
        metrics={"mlm_accuracy": 0.1},
        learning_rate=0.1,
        grad_norm=1.0,
        loss_scale=None,
        skipped_steps=0,
        window_steps=window,
        window_s=0.5 * window,
        sequences_per_second=2.0 * BATCH,
        real_tokens_per_second=100.0,
        padded_tokens_per_second=200.0,
        data_wait_s=next(_APART) * 1e-9,
        time_s=float(step),
    )


def eval_event(step: int, value: float, target: float | None = 0.5) -> EvalEvent:
    return EvalEvent(
        step=step,
        samples=step * BATCH,
        metrics={"mlm_accuracy": value, "num_samples": 100.0},
        target_metric="mlm_accuracy",
        target_value=target,
        reached=target is not None and value >= target,
        eval_s=1.0,
        time_s=float(step),
    )


class Readings:
    def __init__(self) -> None:
        self.all: list[dict[str, float]] = []

    def samples(self) -> list[dict[str, float]]:
        return self.all


def run(
    root: Path,
    value: float = 0.6,
    status: str = "ok",
    metrics: tuple[Metric, ...] = (),
    target: float | None = 0.5,
    **changed: Any,
) -> Path:
    """A whole run of ten steps with one evaluation."""
    record = create(root, **changed)
    log = mlperf_log(record)
    record.telemetry = readings = Readings()
    for o in (log, record):
        o.init_start()
        o.init_stop()
        o.run_start(step=0, samples=0)
        o.on_step(step_event(6, 6))
        o.on_step(step_event(10, 4))
        readings.all[:] = [{"t": 1.0, "power_w": 50.0}]
        o.eval_start(step=10, samples=80)
        o.on_eval(eval_event(10, value, target))
        readings.all.append({"t": 2.0, "power_w": 51.0})
        o.on_checkpoint(
            path=str(record.path / "checkpoints" / "step_00000010"), step=10, samples=80, seconds=1
        )
        o.run_stop(step=10, samples=80, status="success" if status == "ok" else "aborted")
    record.note("something to know")
    print("printed", Path.home() / "secret", file=record.console, flush=True)
    rate = (metric("sequences_per_second", 16.0),)
    summary = RunSummary(
        status=status, reason="r", step=10, samples=80, metrics=rate + metrics, extras={"a": 1}
    )
    log.close(summary)
    record.close(summary)
    return record.path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return run(tmp_path / "results")


def errors(path: Path, **options: Any) -> list[str]:
    found = validate(path, **options)
    return [f"{p.file}: {p.text}" for p in found if p.severity == "error"]


def read(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


# -- writing ---------------------------------------------------------------------------------


def test_a_good_record_is_valid_and_complete(good: Path) -> None:
    assert errors(good) == []
    assert {file.name for file in good.iterdir()} == {
        "manifest.json", "config.json", "system.json", "steps.jsonl", "telemetry.jsonl",
        "result_0.txt", "console.log",
    }  # fmt: skip
    manifest = read(good)
    assert manifest["status"] == "ok"
    assert manifest["inputs"] == INPUTS
    assert manifest["quality"]["value"] == 0.6
    assert manifest["notes"] == ["something to know"]
    assert manifest["metrics"][0]["name"] == "sequences_per_second"
    assert set(manifest["files"]) == {f.name for f in good.iterdir()} - {"manifest.json"}
    lines = [json.loads(line) for line in (good / "steps.jsonl").read_text().splitlines()]
    kinds = ["run_start", "step", "step", "eval", "checkpoint", "run_stop"]
    assert [line["kind"] for line in lines] == kinds
    assert lines[4]["path"] == "checkpoints/step_00000010"
    power = [json.loads(x)["power_w"] for x in (good / "telemetry.jsonl").read_text().splitlines()]
    assert power == [50.0, 51.0]


def test_the_name_has_time_recipe_precision_and_commit(tmp_path: Path) -> None:
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
    first, second = create(tmp_path, now=now), create(tmp_path, now=now)
    assert first.path.parent == tmp_path / "test-1x" / "bert_pretraining"
    commit = (read(first.path)["commit"] or "")[:7] or "nocommit"
    assert first.run_id.startswith(f"20260304T050607Z_toy_bf16_{commit}_")
    assert first.path != second.path
    assert errors(first.path) == []


@pytest.mark.parametrize(
    ("recipe", "commit", "middle"),
    [
        ("squad_large_448", "29ea4d2" + "0" * 33, "squad_large_448_bf16_29ea4d2"),
        ("My recipe/..-v2", None, "my_recipe_v2_bf16_nocommit"),
        ("x" * 300, None, "x" * 60 + "_bf16_nocommit"),
    ],
)
def test_any_recipe_makes_a_valid_name(recipe: str, commit: str | None, middle: str) -> None:
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
    name = new_run_id(now, recipe, "bf16", commit)
    assert name[:-6] == f"20260304T050607Z_{middle}_" and len(name) < 128
    schema = json.loads((SCHEMAS / "manifest-1.json").read_text())
    pattern = schema["properties"]["run_id"]["pattern"]
    assert re.match(pattern, name) and re.match(pattern, "20261121T234946Z_29ea4d2_e396f5")


def test_a_finished_record_is_read_only(good: Path) -> None:
    for path in (good, *good.iterdir()):
        assert path.stat().st_mode & 0o222 == 0


def test_nothing_private_is_recorded(good: Path) -> None:
    text = "".join(file.read_text() for file in good.iterdir())
    assert str(Path.home()) + "/" not in text
    assert os.uname().nodename not in text
    assert "~/corpus" in (good / "config.json").read_text()
    assert "printed ~/secret" in (good / "console.log").read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("/h/me/x", "~/x"), ("/h/me", "~"), ("/h/meg/x", "/h/meg/x"), ("/a/h/me", "/a/h/me"),
     ("in '/h/me/a' and /h/me/b", "in '~/a' and ~/b")],
)  # fmt: skip
def test_home_is_hidden(monkeypatch: pytest.MonkeyPatch, text: str, wanted: str) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/h/me"))
    assert hide_home(text) == wanted


def test_a_user_without_a_home_has_nothing_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown uid of a container, without HOME."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123456789)
    assert hide_home("/h/me/a ~/b") == "/h/me/a ~/b"


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    record = create(tmp_path)
    record.run_start(step=0, samples=0)
    record.on_step(step_event(1, 1, loss=float("nan")))
    record.on_eval(eval_event(1, float("nan")))
    record.close(RunSummary(status="failed", reason="step 1: NaN", step=1, samples=BATCH))
    assert errors(record.path) == []
    assert read(record.path)["quality"]["value"] is None


def test_bad_names_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"system 'A B'.*--system"):
        create(tmp_path, system="A B")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot write a record.*--output_dir"):
        create(tmp_path / "file")


@pytest.mark.parametrize("status", ["failed", "oom", "unsupported", "interrupted"])
def test_every_other_ending_is_a_valid_record(tmp_path: Path, status: str) -> None:
    record = create(tmp_path)
    record.close(RunSummary(status=status, reason="because", step=0, samples=0))
    assert errors(record.path) == []
    assert read(record.path)["status"] == status


def test_an_open_run_that_missed_its_target(tmp_path: Path) -> None:
    path = run(tmp_path, value=0.4, status="below_quality")
    assert errors(path) == []
    assert main([str(path)]) == 0


def test_without_a_target_and_without_mlperf(tmp_path: Path) -> None:
    assert errors(run(tmp_path, target=None, mlperf=None)) == []


def test_a_pure_speed_run_needs_no_compliant_log(tmp_path: Path) -> None:
    record = create(tmp_path)
    log = mlperf_log(record)
    for o in (log, record):
        o.init_start()
        o.init_stop()
        o.run_start(step=0, samples=0)
        o.on_step(step_event(2, 2))
        o.run_stop(step=2, samples=16, status="success")
        o.close(RunSummary(status="ok", reason="r", step=2, samples=16))
    assert errors(record.path) == []
    assert any("evaluated nothing" in p.text for p in validate(record.path))
    forge(record.path, "manifest.json", lambda m: m["mlperf"].update(division="closed"))
    assert any("eval_accuracy is missing" in text for text in errors(record.path))


# -- validating ------------------------------------------------------------------------------


def forge(path: Path, name: str, change: Callable[[Any], Any], reseal: bool = True) -> None:
    """Change a file of a record, and by default its checksum too."""
    path.chmod(0o755)
    for file in path.iterdir():
        file.chmod(0o644)
    file = path / name
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = change(lines) or lines
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif name.endswith(".json"):
        value = json.loads(file.read_text())
        file.write_text(sealed(json.dumps(change(value) or value)))
    else:
        file.write_text(change(file.read_text()))
    if reseal and name != "manifest.json":
        data = file.read_bytes()
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        forge(path, "manifest.json", lambda m: m["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("name", "change", "wanted"),
    [
        ("manifest.json", lambda m: m.update(schema_version=99), "unknown schema_version 99"),
        ("manifest.json", lambda m: m.update(status="great"), "status: 'great' is not one of"),
        ("manifest.json", lambda m: m.update(hostname="x"), "'hostname' was unexpected"),
        ("manifest.json", lambda m: m.update(recipe_hash=None), "recipe_hash: None is not of type"),
        ("manifest.json", lambda m: m["metrics"][0].update(value=None), "metrics[0].value: None"),
        ("manifest.json", lambda m: m["metrics"][0].update(ci_low=1), "ci_low: 1 is not of type"),
        ("manifest.json", lambda m: m["metrics"][0].update(value=20), "the windows give 16"),
        ("manifest.json", lambda m: m["metrics"][0].update(value=-1), "leave out unmeasured"),
        ("manifest.json", lambda m: m["metrics"].append(m["metrics"][0]), "occurs 2 times"),
        ("manifest.json", lambda m: m.update(step=11), "ends at another step"),
        ("manifest.json", lambda m: m.update(quality=None), "quality is not that of the last"),
        ("manifest.json", lambda m: m.update(status="below_quality"), "an evaluation reached"),
        ("manifest.json", lambda m: m.update(seed=43), "its seed is not the manifest's 43"),
        ("manifest.json", lambda m: m.update(preset="other"), "its preset is not the manifest's"),
        ("manifest.json", lambda m: m["inputs"].update(data="f"), "not the one in the manifest"),
        ("config.json", lambda c: c["recipe"].update(global_batch=9), "not the one in the manif"),
        ("config.json", lambda c: c["origins"].pop("kernels") and None, "for impl value kernels"),
        ("config.json", lambda c: c.update(origins={}), "no origin for recipe value global_batch"),
        ("system.json", lambda s: s["devices"][0].update(simulated=True), "not system.json's"),
        ("manifest.json", lambda m: m.update(simulated=True), "not system.json's"),
        ("system.json", lambda s: s.update(user="me"), "'user' was unexpected"),
        ("system.json", lambda s: s["devices"][0].update(memory_bytes=0), "bytes: 0 is less"),
        ("steps.jsonl", lambda s: s[1].update(samples=49), "step 6 has 49 samples, not 8 per step"),
        ("steps.jsonl", lambda s: s[2].update(window_steps=5), "does not begin at step 6"),
        ("steps.jsonl", lambda s: s[2].update(time_s=0.0), "time goes back at step 10"),
        ("steps.jsonl", lambda s: s[2].update(loss="x"), "line 3: loss: 'x' is not of type"),
        ("steps.jsonl", lambda s: [s[0], s[2], s[1], *s[3:]], "goes back from step 10 to 6"),
        ("steps.jsonl", lambda s: s[3].update(reached=False), "but its value is 0.6 of 0.5"),
        ("steps.jsonl", lambda s: s[:-1], "does not hold one run"),
        ("steps.jsonl", lambda s: [x for x in s if x["kind"] != "eval"], "has no evaluation"),
        ("steps.jsonl", lambda s: s[1].update(sequences_per_second=30.0), "the windows give 24.4"),
        ("telemetry.jsonl", lambda t: t[0].update(power_w=None), "power_w: None is not of type"),
        ("result_0.txt", lambda t: t.replace("0.6,", "0.61,"), "lacks the evaluation at 80"),
        ("result_0.txt", lambda t: t.replace('"open"', '"closed"'), "not open: change"),
        ("result_0.txt", lambda t: t.replace("run_stop", "run_halt"), "run_stop is missing"),
    ],
)  # fmt: skip
def test_a_forged_record_is_found_out(
    good: Path, name: str, change: Callable[[Any], Any], wanted: str
) -> None:
    forge(good, name, change)
    found = "\n".join(errors(good))
    assert wanted in found
    assert main([str(good)]) == 1


def test_a_checkpoint_may_be_complete_after_later_steps(good: Path) -> None:
    forge(good, "steps.jsonl", lambda s: s[4].update(step=6, samples=48))
    assert not errors(good)


def test_changes_without_new_checksums_are_found(good: Path) -> None:
    forge(good, "console.log", lambda text: text.replace("p", "q"), reseal=False)
    (good / "extra.txt").write_text("x")
    (good / "telemetry.jsonl").unlink()
    assert errors(good) == [
        "console.log: differs from its checksum: damaged, or changed afterwards",
        "telemetry.jsonl: missing",
        "extra.txt: not part of the record: remove it",
    ]


def test_links_are_refused(good: Path, tmp_path: Path) -> None:
    good.chmod(0o755)
    shutil.move(good / "console.log", tmp_path / "elsewhere")
    (good / "console.log").symlink_to(tmp_path / "elsewhere")
    assert errors(good) == ["console.log: not a plain file: remove it"]


def test_an_impossible_mfu_and_an_unearned_time(tmp_path: Path) -> None:
    mfu = Metric(name="mfu", value=5.63, unit="", direction="higher", clock="host-sync",
                 scope="global", definition="d")  # fmt: skip
    found = "\n".join(errors(run(tmp_path / "a", metrics=(mfu,))))
    assert "mfu is 5.63: above 1 is impossible" in found
    early = (metric("time_to_target_s", 3.0),)
    found = "\n".join(errors(run(tmp_path / "b", 0.4, "below_quality", early)))
    assert "time_to_target_s of a run that did not reach" in found
    e2e = (metric("sequences_per_second_e2e", 5.0), metric("run_time_s", 10.0))
    assert "is not the 80 trained" in "\n".join(errors(run(tmp_path / "c", metrics=e2e)))


def test_the_whole_times_are_those_of_the_events(tmp_path: Path) -> None:
    def told(name: str, **seconds: float) -> str:
        metrics = tuple(metric(n, s) for n, s in seconds.items())
        return "\n".join(errors(run(tmp_path / name, metrics=metrics)))

    last_s = max(
        json.loads(line).get("time_s") or 0.0
        for line in (run(tmp_path / "a") / "steps.jsonl").read_text().splitlines()
    )
    assert last_s > 0 and told("b", run_time_s=last_s + 1) == ""
    assert "but steps.jsonl has an event at" in told("c", run_time_s=last_s / 2)
    both = told("d", run_time_s=last_s + 1, time_to_target_s=last_s / 2)
    assert "but the run took" in both
    assert told("e", run_time_s=last_s + 1, time_to_target_s=last_s + 1) == ""


def test_a_record_without_its_manifest_is_no_valid_one(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, other = good.parents[2], good.with_name("20200101T000000Z_abcdef0_aaaaaa")
    good.parent.chmod(0o755)
    other.mkdir()
    (other / "steps.jsonl").write_text("")
    assert main([str(root)]) == 1
    text = capsys.readouterr().out
    assert f"{good}: valid" in text and f"{other}: NOT VALID" in text
    assert main([str(other)]) == 1


def test_a_renamed_folder_is_found(good: Path) -> None:
    moved = good.with_name("20200101T000000Z_abcdef0_aaaaaa")
    good.parent.chmod(0o755)
    good.chmod(0o755)
    good.rename(moved)
    assert "the folder was renamed" in errors(moved)[0]


def test_other_rounds_can_be_asked_for(good: Path) -> None:
    assert errors(good, rulesets=["1.0.0", "4.1.0"]) == []
    forge(good, "result_0.txt", lambda t: t.replace("submission_status", "x"))
    assert errors(good, rulesets=["5.0.0"]) == []
    found = errors(good, rulesets=["5.0.0", "4.0.0"])
    assert found == ["result_0.txt: open 4.0.0: submission_status is missing: log it once"]


def test_main_prints_text_and_json(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = good.parents[2]
    (good.with_name(".20200101T000000Z_x_aaaaaa")).mkdir()
    assert main([str(root)]) == 0
    assert f"{good}: valid" in capsys.readouterr().out
    forge(good, "config.json", lambda c: c.update(preset="x"))
    assert main([str(root), "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["run"] == str(good)
    assert report["valid"] is False
    assert report["problems"][0]["severity"] == "error"
    with pytest.raises(BadInput, match="no record in"):
        main([str(root / "none")])
    with pytest.raises(BadInput, match="not a run folder"):
        validate(root)


def test_a_simulated_run_is_valid_and_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path, devices=[DEVICE, replace(DEVICE, index=1, simulated=True)])
    assert read(path)["simulated"] is True
    assert errors(path) == []
    assert main([str(path)]) == 1
    assert f"{path}: valid, but SIMULATED: no result" in capsys.readouterr().out
    assert main([str(path), "--simulated", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["valid"] is True and report["simulated"] is True
    forge(path, "manifest.json", lambda m: m.update(simulated=False))
    assert "its simulated is not system.json's" in errors(path)[0]
    assert main([str(path), "--simulated"]) == 1


def test_a_record_from_before_there_were_simulated_devices_is_valid(good: Path) -> None:
    assert read(good)["simulated"] is False
    forge(good, "manifest.json", lambda m: m.pop("simulated") and None)
    assert errors(good) == [] and main([str(good)]) == 0


def test_throttling_is_told(good: Path) -> None:
    def slow_down(readings: list[dict[str, float]]) -> None:
        readings[0].update(throttled=0.0, throttle_power=0.0)
        readings[1].update(throttled=1.0, throttle_power=0.0, throttle_thermal=1.0)

    assert not any("throttled" in p.text for p in validate(good))
    forge(good, "telemetry.jsonl", slow_down)
    assert errors(good) == []
    (told,) = (p for p in validate(good) if p.file == "telemetry.jsonl")
    assert told.text == "the device was throttled in 1 of 2 readings (thermal)"


def test_the_schemas_are_schemas() -> None:
    files = sorted(SCHEMAS.glob("*.json"))
    assert len(files) >= 5
    for file in files:
        schema = json.loads(file.read_text())
        assert schema["$schema"].endswith("2020-12/schema")
        jsonschema.Draft202012Validator.check_schema(schema)


def test_a_record_is_held_as_long_as_its_process_writes_it(tmp_path: Path) -> None:
    record = create(tmp_path)
    assert is_written(record.path)
    (run_now,), _ = load_results([record.path], references=False)
    assert (run_now.status, run_now.reason) == ("running", "it goes on")
    assert next(p.text for p in validate(record.path)).startswith("the run goes on")
    path = record.path
    del record  # as a process that is gone
    gc.collect()
    assert not is_written(path)
    (ended,), _ = load_results([path], references=False)
    assert ended.status == "interrupted"
    assert not is_written(run(tmp_path / "closed")) and not is_written(tmp_path / "none")
