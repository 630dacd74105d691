# SPDX-License-Identifier: Apache-2.0
"""Check that the parts of a record agree with each other and with the rules of measuring.

Each check yields ``(severity, file, text)``. The files have passed their schemas and checksums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertbench.common.config.recipe import hash_values
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.masks.mask import SUFFIX, AttentionMask
from bertbench.common.mlperf.compliance import check_log, read_whole
from bertbench.common.mlperf.log import log_lines, read_log
from bertbench.common.results import inference
from bertbench.common.results.comparable import leaves
from bertbench.common.results.inference import Finding
from bertbench.common.results.seals import cut_short

LOG = "result_0.txt"
_RATES = ("sequences_per_second", "real_tokens_per_second", "padded_tokens_per_second")
_POSITIVE = (
    *(*_RATES, "model_flops_per_second", "effective_flops_per_second"),
    *("power_w", "energy_j", "peak_memory_bytes"),
)
_TOLERANCE = 0.01
"""Of rates: before 2026-11-26, windows of several ranks overlapped by the wait for the slowest."""
_WARM_UP = 0.02
"""The share of a rate that its first window may cost without a note."""
_LAST_REPORT_S = 0.1
"""Before 2026-11-26, the timed seconds held the writing of the last report."""


def check(path: Path, content: Mapping[str, Any], rulesets: Sequence[str]) -> Iterator[Finding]:
    """Run every check on ``content``: manifest, config, system, steps and telemetry."""
    manifest, steps = content["manifest"], content["steps"]
    yield from _identity(path, manifest, content["config"], content["system"])
    yield from _order(manifest, steps)
    yield from _quality(manifest, steps)
    skipped = content["config"]["run"].get("skip_steps", 0)
    values = {metric["name"]: metric["value"] for metric in manifest["metrics"]}
    yield from _values(manifest, values)
    if steps:
        yield from _times(manifest, steps, values)
        yield from _rates(steps, values, skipped)
    yield from _throttling(content["telemetry"])
    if manifest["mlperf"] is not None:
        yield from _mlperf(path, manifest, steps, rulesets)
    if "export" in manifest["extras"] and manifest["files"]:
        yield from inference.check(path, manifest, content["config"], steps)


def _identity(
    path: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], system: Mapping[str, Any]
) -> Iterator[Finding]:
    if manifest["run_id"] != path.resolve().name:
        yield "error", "manifest.json", f"names run {manifest['run_id']}: the folder was renamed"
    if manifest["recipe_hash"] is not None:
        actual = hash_values(manifest["recipe_kind"] or "", config["recipe"], manifest["inputs"])
        if actual != manifest["recipe_hash"]:
            text = f"its recipe and inputs have hash {actual}, not the one in the manifest"
            yield "error", "config.json", text
    yield from _mask(config["recipe"].get("attention_mask"), manifest)
    for key in ("preset", "benchmark"):
        if config[key] != manifest[key]:
            yield "error", "config.json", f"its {key} is not the manifest's"
    for part in ("recipe", "impl", "run"):
        for name in leaves(config[part]):
            if name not in config["origins"]:
                yield "error", "config.json", f"no origin for {part} value {name}"
    if manifest.get("simulated", False) != any(d["simulated"] for d in system["devices"]):
        yield "error", "manifest.json", "its simulated is not system.json's"
    elif manifest.get("simulated", False):
        yield "note", "manifest.json", "a simulated device: its figures are not a result"
    if manifest["recipe_hash"] is not None and manifest["inputs"].get("data") is None:
        yield "note", "manifest.json", "no hash of the data: not comparable with runs on real data"
    if manifest["dirty"]:
        yield "note", "manifest.json", "made with files that differ from the commit; see code_hash"
    if manifest["commit"] is None:
        yield "note", "manifest.json", "made outside a git checkout; see code_hash"


def _mask(text: Any, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that the hash of the recipe's attention mask is among the inputs."""
    found = manifest["inputs"].get("attention_mask")
    if manifest["recipe_hash"] is None or (text is None and found is None):
        return
    expected = found
    if isinstance(text, str) and not text.endswith(SUFFIX):
        try:
            expected = AttentionMask.of(text).hash
        except BadInput as error:
            yield "error", "config.json", str(error)
            return
    if text is None or found is None or found != expected:
        yield "error", "manifest.json", f"its attention mask is not the recipe's, {shown(text)}"


def _order(manifest: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that events are in order, windows join, and samples are steps times global batch."""
    batch = manifest["global_batch"]
    # A checkpoint is written beside training, so its line may come after those of later steps.
    trained = [line for line in lines if line["kind"] != "checkpoint"]
    for before, now in itertools.pairwise(trained):
        if now["step"] < before["step"] or now["samples"] < before["samples"]:
            yield "error", "steps.jsonl", f"goes back from step {before['step']} to {now['step']}"
            return
    for line in lines:
        if batch is not None and line["samples"] != line["step"] * batch:
            text = f"step {line['step']} has {line['samples']} samples, not {batch} per step"
            yield "error", "steps.jsonl", text
            return
    reports = [line for line in lines if line["kind"] in ("run_start", "step")]
    for before, now in itertools.pairwise(reports):
        if now["kind"] == "step" and now["step"] - before["step"] != now["window_steps"]:
            text = f"the window of step {now['step']} does not begin at step {before['step']}"
            yield "error", "steps.jsonl", text
            return
        if before["kind"] == now["kind"] and now["time_s"] < before["time_s"]:
            yield "error", "steps.jsonl", f"time goes back at step {now['step']}"
            return
    if manifest["files"] is None:
        return
    kinds = [line["kind"] for line in lines]
    whole = kinds.count("run_start") == 1 and kinds[-1] == "run_stop"
    if manifest["status"] in ("ok", "below_quality") and not whole:
        yield "error", "steps.jsonl", "does not hold one run from run_start to run_stop"
    elif lines:
        last, end = lines[-1], (manifest["step"], manifest["samples"])
        # A run that failed may have done steps that it had not reported yet.
        batch = manifest["global_batch"]
        unreported = (
            kinds[-1] != "run_stop" and last["step"] < end[0] and batch in (None, end[1] / end[0])
        )
        if (last["step"], last["samples"]) != end and not unreported:
            yield "error", "manifest.json", "ends at another step than steps.jsonl"


def _quality(manifest: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Check that quality and status follow from the evaluations."""
    status, quality = manifest["status"], manifest["quality"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    for line in evaluations:
        value, target = line["metrics"].get(line["target_metric"]), line["target_value"]
        reached = target is not None and value is not None and value >= target
        if reached != line["reached"]:
            text = f"the evaluation at {line['samples']} samples says reached={line['reached']}"
            yield "error", "steps.jsonl", f"{text}, but its value is {value} of {target}"
            return
    if manifest["files"] is None:
        return
    if evaluations:
        last = evaluations[-1]
        value = last["metrics"].get(last["target_metric"])
        wanted = {"metric": last["target_metric"], "value": value, "target": last["target_value"]}
        wanted |= {"reached": last["reached"], "samples": last["samples"]}
        if quality != wanted:
            yield "error", "manifest.json", "its quality is not that of the last evaluation"
            return
    elif quality is not None:
        yield "error", "manifest.json", "has a quality, but steps.jsonl has no evaluation"
        return
    reached = any(line["reached"] for line in evaluations)
    targeted = any(line["target_value"] is not None for line in evaluations)
    if status == "ok" and targeted and not reached:
        yield "error", "manifest.json", "status ok, but no evaluation reached the target"
    if status == "below_quality" and reached:
        yield "error", "manifest.json", "status below_quality, but an evaluation reached the target"
    named = {metric["name"] for metric in manifest["metrics"]}
    if "time_to_target_s" in named and not (status == "ok" and reached):
        yield "error", "manifest.json", "time_to_target_s of a run that did not reach its target"


def _values(manifest: Mapping[str, Any], values: Mapping[str, float]) -> Iterator[Finding]:
    """Check that each metric occurs once and is possible."""
    names = [metric["name"] for metric in manifest["metrics"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "error", "manifest.json", f"{name} occurs {names.count(name)} times"
    for name, value in values.items():
        if name in _POSITIVE and value <= 0:
            yield "error", "manifest.json", f"{name} is {value}: leave out unmeasured metrics"
        if (name == "mfu" or name.startswith("mfu_of_")) and value > 1:
            yield "error", "manifest.json", f"{name} is {value}: above 1 is impossible"
    if values.get("mfu_calibrated", 0) > 1:
        text = f"mfu_calibrated is {values['mfu_calibrated']:.3g}: calibrate on an idle machine"
        yield "note", "manifest.json", text


def _rates(
    lines: Sequence[Mapping[str, Any]], values: Mapping[str, float], skipped: int
) -> Iterator[Finding]:
    """Check the rates against the windows after the first ``skipped`` steps."""
    reports = [line for line in lines if line["kind"] == "step"]
    covered = sum(line["window_steps"] for line in reports)
    warm = lines[0]["step"] + skipped
    windows = [line for line in reports if line["step"] - line["window_steps"] >= warm]
    seconds = sum(line["window_s"] for line in windows)
    if not seconds or covered != lines[-1]["step"] - lines[0]["step"]:  # some steps have no window
        return
    for name in _RATES:
        if values.get(name, 0) <= 0 or any(line[name] is None for line in windows):
            continue
        count = sum(line[name] * line["window_s"] for line in windows)
        if abs(count / values[name] - seconds) > _TOLERANCE * seconds + _LAST_REPORT_S:
            text = f"{name} is {values[name]:.6g}, but the windows give {count / seconds:.6g}"
            yield "error", "manifest.json", text
    yield from _warm_up(windows)


def _times(
    manifest: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], values: Mapping[str, float]
) -> Iterator[Finding]:
    """Check the run's times against the events', all from the start of this process's run."""
    run_s, target_s = values.get("run_time_s"), values.get("time_to_target_s")
    if run_s is None:
        return
    e2e = values.get("sequences_per_second_e2e")
    samples = lines[-1]["samples"] - lines[0]["samples"]
    if e2e and run_s and not math.isclose(e2e * run_s, samples, rel_tol=_TOLERANCE):
        text = f"sequences_per_second_e2e x run_time_s is not the {samples} trained"
        yield "error", "manifest.json", text
    last_s = max((line["time_s"] for line in lines if line["kind"] in ("step", "eval")), default=0)
    if run_s < last_s * (1 - _TOLERANCE):
        text = f"run_time_s is {run_s:.6g}, but steps.jsonl has an event at {last_s:.6g} s"
        yield "error", "manifest.json", text
    # MLPerf's clock is this run's, unless it began in another process.
    whole = manifest["resumed_from"] is None
    if whole and target_s is not None and not math.isclose(target_s, run_s, rel_tol=_TOLERANCE):
        text = f"time_to_target_s is {target_s:.6g}, but the run took {run_s:.6g} s"
        yield "error", "manifest.json", text


def _warm_up(windows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Note a slow first window: the device was still warming up."""
    rates = [window["real_tokens_per_second"] for window in windows]
    if len(windows) < 3 or not all(rates):
        return

    def rate(some: Sequence[Mapping[str, Any]]) -> float:
        seconds = sum(w["window_s"] for w in some)
        return sum(w["real_tokens_per_second"] * w["window_s"] for w in some) / seconds

    gain = rate(windows[1:]) / rate(windows) - 1
    if rates[0] < min(rates[1:]) and gain > _WARM_UP:
        text = f"the first window of the rates was the slowest: without it they are {gain:.1%} "
        text += "higher; train longer, or leave it out where the recipe has --skip_steps"
        yield "note", "steps.jsonl", text


def _throttling(readings: Sequence[Mapping[str, float]]) -> Iterator[Finding]:
    """Note a throttled device: its rates are too low."""
    known = [reading for reading in readings if "throttled" in reading]
    slow = [reading for reading in known if reading["throttled"]]
    if slow:
        why = {key for reading in slow for key, value in reading.items() if value}
        named = sorted(key[9:] for key in why if key.startswith("throttle_"))
        reasons = ", ".join(named) or "reason unknown"
        text = f"the device was throttled in {len(slow)} of {len(known)} readings ({reasons})"
        yield "note", "telemetry.jsonl", text


def _mlperf(
    path: Path,
    manifest: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    rulesets: Sequence[str],
) -> Iterator[Finding]:
    """Check the MLPerf log: against the manifest, the evaluations and the ruleset."""
    status, log = manifest["status"], path / LOG
    if status not in ("ok", "below_quality"):
        yield "note", LOG, f"not checked for compliance: the run ended as {status}"
        return
    if cut := cut_short(manifest, LOG):
        yield "note", LOG, f"no valid MLPerf log, and no submission: {cut}"
        return
    if manifest["quality"] is None and manifest["mlperf"]["division"] == "open":
        yield "note", LOG, "not checked for compliance: the run evaluated nothing"
        return
    if not log.exists():
        yield "error", LOG, "missing: the manifest promises an MLPerf log"
        return
    try:
        content = read_whole(log)
    except BadInput as error:
        yield "error", LOG, str(error)
        return
    events = [e for _, e in read_log(log_lines(content, "utf-8")) if e is not None]
    for key, wanted in (
        ("seed", manifest["seed"]),
        ("global_batch_size", manifest["global_batch"]),
    ):
        if wanted not in (None, *(e["value"] for e in events if e["key"] == key)):
            yield "error", LOG, f"its {key} is not the manifest's {wanted}"
    logged = [
        (e["metadata"].get("epoch_num"), e["value"]) for e in events if e["key"] == "eval_accuracy"
    ]
    for line in (line for line in lines if line["kind"] == "eval"):
        if (line["samples"], line["metrics"].get(line["target_metric"])) not in logged:
            text = f"lacks the evaluation at {line['samples']} samples, or has another value"
            yield "error", LOG, text
    for ruleset in rulesets or (manifest["mlperf"]["ruleset"],):
        division = manifest["mlperf"]["division"]
        for problem in check_log(log, ruleset, division, converged=status == "ok"):
            yield "error", LOG, f"{division} {ruleset}: {problem.removeprefix(f'{LOG}: ')}"
