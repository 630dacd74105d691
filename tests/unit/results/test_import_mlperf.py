# SPDX-License-Identifier: Apache-2.0
"""Every real MLPerf BERT log is read, harder ones made from them too, and nothing is guessed."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import statistics
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlperf_logs import ARCHIVE, LINE, line, made, told

from bertbench.common.cli.main import main as bertbench
from bertbench.common.errors import BadInput
from bertbench.common.exchange.import_log import Origin, import_log
from bertbench.common.mlperf.log import MlperfLog
from bertbench.common.results.published import load_published, problems
from bertbench.common.results.store import REFERENCE, load_results
from bertbench.common.training.events import EvalEvent, RunSummary

KNOWN = {
    # Round, submitter, file: seconds, samples, accuracy, status, batch; read with grep.
    **{
        ("1.0", "NVIDIA", f"result_{n}.txt"): (*row, "success", 448)
        for n, row in enumerate([
            (1433.884, 3000256, 0.7203264832496643), (1064.580, 2250304, 0.7202260494232178),
            (1292.597, 2850176, 0.7200112342834473), (1378.580, 3000256, 0.7200018763542175),
            (1358.264, 2850176, 0.7203357815742493), (1296.924, 2700096, 0.7201139330863953),
            (1346.450, 2850176, 0.7203077673912048), (1189.195, 2550016, 0.7202260494232178),
            (1134.637, 2400384, 0.7200158834457397), (1415.793, 3000256, 0.7200766205787659),
        ])
    },
    ("1.0", "Supermicro", "result_1.txt"): (
        2965.680, 3450112, 0.056412842124700546, "aborted", 256,
    ),
    ("2.1", "HPE", "result_4.txt"): (None, None, 0.7204058766365051, "no_run_stop", 6144),
    ("3.0", "Intel-HabanaLabs", "result_0.txt"): (
        124.126, 2626560, 0.7209336161613464, "success", 3072,
    ),
    ("3.0", "NVIDIA", "result_0.txt"): (347.703, 2698169, 0.7203474640846252, "success", 768),
}  # fmt: skip
HARD = ["made", "1.0/NVIDIA/0", "1.0/Supermicro/1", "2.1/HPE/4", "3.0/Intel-HabanaLabs/0",
        "3.0/NVIDIA/0"]  # fmt: skip
NOISE = [
    "/opt/conda/lib/python3.8/site-packages/torch/x.py:1: UserWarning: :::MLLOG is not a key",
    "slurmstepd: error: *** STEP 12.0 ON node CANCELLED ***",
    '{"time_ms": 1, "key": "run_stop", "value": null, "metadata": {"status": "aborted"}}',
    "+ grep ':::MLLOG' result.txt",
    '  File "run_pretraining.py", line 1580, in main\r',
    "\x1b[31m 45%|####      | 1234/7100 [01:23<12:34]\x1b[0m\r",
    ":::MLPv0.5.0 transformer 1541635813.98 (x.py:1) run_start",
    "\u4e2d\ufffd\x00\x07",
    "",
]


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The log that is made here, and the real ones where they are."""
    found = {"made": made()}
    if ARCHIVE.exists():
        folder = tmp_path_factory.mktemp("logs")
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        for path in sorted(folder.rglob("result_*.txt")):
            release, submitter = path.relative_to(folder).parts[:2]
            name = f"{release[1:]}/{submitter}/{path.stem.removeprefix('result_')}"
            # Read as the product must not: the 398 tensors that it lists are nothing here.
            lines = path.read_text(encoding="latin-1").split("\n")
            found[name] = [text for text in lines if '"weights_initialization"' not in text]
            found[f"path of {name}"] = [str(path)]
    return found


@pytest.fixture(params=HARD)
def log(request: pytest.FixtureRequest, logs: dict[str, list[str]]) -> list[str]:
    if request.param not in logs:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    return list(logs[request.param])


@pytest.fixture(scope="session")
def spot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spot") / "result_0.txt"


def take(spot: Path, lines: list[str] | bytes, **origin: Any) -> dict[str, Any]:
    """The only row of a log with these lines; what is imported is always a sound record."""
    data = lines if isinstance(lines, bytes) else "\n".join(lines).encode("utf-8", "replace")
    spot.write_bytes(data)
    document = import_log(spot, Origin(**origin))
    assert not problems(json.loads(json.dumps(document)))
    row = document["rows"][0]
    for name in ("samples", "batch", "seed", "division", "round", "submitter", "device"):
        assert row[name] is not None or row["missing"][name], name
    assert row["quality"]["value"] is not None or row["missing"]["accuracy"]
    assert row["quality"]["target"] is not None or row["missing"]["target"]
    for name in ("run_time_s", "time_to_target_s", "sequences_per_second_e2e"):
        assert (name in row["metrics"]) is not (name in row["missing"]), name
    return dict(row)


def value(row: dict[str, Any], name: str) -> float | None:
    return row["metrics"][name]["value"] if name in row["metrics"] else None


def same(row: dict[str, Any], lines: list[str]) -> None:
    """The row says what the lines say."""
    want = told(lines)
    assert row["status"] == want["status"]
    assert value(row, "run_time_s") == want["seconds"]
    reached = want["accuracy"] is None or want["accuracy"] >= (row["quality"]["target"] or 0)
    if "may be a later evaluation" in row["missing"].get("accuracy", ""):
        reached = True  # as far as is known
    else:
        assert row["quality"]["value"] == want["accuracy"]
    assert [e["value"] for e in row["evaluations"]] == want["evaluations"]
    if row["samples"] is not None or row["batch"] is not None:
        assert row["samples"] == want["samples"]
    assert {row["batch"]} - {None} == (want["batch"] if len(want["batch"]) == 1 else set())
    if want["seconds"] and row["samples"]:
        rate = value(row, "sequences_per_second_e2e")
        assert rate == pytest.approx(want["samples"] / want["seconds"], abs=1e-3)
        success = want["status"] == "success" and reached
        assert value(row, "time_to_target_s") == (want["seconds"] if success else None)


# -- the real logs --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", KNOWN, ids="/".join)
def test_real_logs(which: tuple[str, str, str], logs: dict[str, list[str]]) -> None:
    release, submitter, file = which
    name = f"{release}/{submitter}/{re.sub(r'[^0-9]', '', file)}"
    if name not in logs:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    path = Path(logs[f"path of {name}"][0])
    document = import_log(path)
    assert not problems(document)
    row = document["rows"][0]
    same(row, logs[name])
    seconds, samples, accuracy, status, batch = KNOWN[which]
    assert (value(row, "run_time_s"), row["samples"]) == (seconds, samples)
    assert row["quality"]["value"] == accuracy
    assert (row["status"], row["batch"]) == (status, batch)
    assert (row["round"], row["submitter"]) == (release, submitter)
    assert row["system"] == path.parts[-3]
    assert row["quality"]["target"] == 0.72
    assert row["quality"]["reached"] is (accuracy >= 0.72)
    assert row["division"] == "closed"
    assert row["log"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row["log"]["damaged"] == 0
    # Samples of evaluations from 2.0 on, when epoch_num began to count them.
    counted = {e["samples"] is not None for e in row["evaluations"]}
    assert counted == {release != "1.0"}


def test_what_the_odd_logs_are_told_to_be(logs: dict[str, list[str]]) -> None:
    if "2.1/HPE/4" not in logs:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")

    def row(name: str) -> dict[str, Any]:
        return dict(import_log(Path(logs[f"path of {name}"][0]))["rows"][0])

    truncated = row("2.1/HPE/4")
    assert "run_stop is not in the log" in truncated["missing"]["time_to_target_s"]
    assert "4417536 at the last evaluation" in truncated["missing"]["samples"]
    assert truncated["quality"]["reached"] is True  # it got there; how long it took is not known
    diverged = row("1.0/Supermicro/1")
    assert diverged["missing"]["time_to_target_s"] == "the target was not reached (aborted)"
    assert "published under Supermicro, but submission_org is NVIDIA" in diverged["doubt"]
    gaudi = row("3.0/Intel-HabanaLabs/0")
    assert gaudi["log"]["facts"]["samples_from"] == "run_stop"  # its train_samples are a plan
    assert gaudi["log"]["facts"]["in_order_of_time"] is False
    assert gaudi["missing"]["seed"] == "seed is not in the log"
    assert not gaudi["doubt"]  # Habana is Intel-HabanaLabs


def test_ten_runs_give_the_published_time(logs: dict[str, list[str]]) -> None:
    """MLPerf's score of them, as the reference figures of this repository have it."""
    names = [f"1.0/NVIDIA/{n}" for n in range(10)]
    if names[0] not in logs:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    rows = [import_log(Path(logs[f"path of {name}"][0]))["rows"][0] for name in names]
    times = sorted(value(row, "time_to_target_s") or 0 for row in rows)
    published = next(
        result.metrics for result in load_results([])[0]
        if result.kind == "published" and result.manifest.get("round") == "1.0"
        and result.system_name == "dgxa100_ngc21.05_pytorch"
    )  # fmt: skip
    assert sum(times[1:-1]) / 8 == pytest.approx(published["time_to_target_s"]["value"], rel=5e-4)
    samples = statistics.median(row["samples"] for row in rows)
    assert samples == pytest.approx(published["samples_to_target"]["value"], rel=5e-4)
    rates = sorted(value(row, "sequences_per_second_e2e") or 0 for row in rows)
    assert rates[0] < published["sequences_per_second_e2e"]["value"] < rates[-1]


def test_all_of_a_folder_through_the_command(
    logs: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [text[0] for name, text in logs.items() if name.startswith("path of")]
    if not paths:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    out = tmp_path / "reference"
    for _ in range(2):  # the second time nothing is added
        assert bertbench(["import-mlperf", *paths, "--output", str(out)]) == 0
        assert len(list(out.iterdir())) == len(paths) == 14
    printed = capsys.readouterr().out
    assert "success, accuracy 0.72035, target 0.72, 5.80 min, 2698169 samples" in printed
    assert "published under Supermicro" in printed
    results, damaged = load_results([out])
    assert not damaged
    ours = [result for result in results if result.path.parent == out]
    assert len(ours) == 14
    assert {result.kind for result in ours} == {"mlperf"}
    assert {result.status for result in ours} == {"success", "aborted", "no_run_stop"}


def test_the_logs_in_the_reference_folder_are_what_import_makes(logs: dict[str, list[str]]) -> None:
    files = sorted(REFERENCE.glob("mlperf_v*.json"))
    assert len(files) == 2
    by_sum = {
        hashlib.sha256(Path(text[0]).read_bytes()).hexdigest(): Path(text[0])
        for name, text in logs.items()
        if name.startswith("path of")
    }
    if not by_sum:
        pytest.skip("the published MLPerf logs are not here (../shared/data/mlperf_logs)")
    for file in files:
        stored = load_published(file)
        row = stored["rows"][0]
        path = by_sum[row["log"]["sha256"]]
        known = {**vars(Origin.of(path)), "devices": row["devices"], "device": row["device"]}
        fresh = import_log(path, Origin(**known))
        fresh["rows"][0]["log"]["facts"]["given"] = row["log"]["facts"].get("given")
        assert fresh == stored


# -- hard cases made from them --------------------------------------------------------------------


def test_noise_everywhere(log: list[str], spot: Path) -> None:
    """Lines between, text before and behind, two events in one line: the same row."""
    plain = take(spot, log)
    same(plain, log)
    for seed in range(5):
        chance = random.Random(seed)
        noisy: list[str] = []
        for text in log:
            noisy += chance.choices(NOISE, k=chance.choice((0, 0, 1, 3)))
            if ":::MLLOG" in text and chance.random() < 0.3:
                text = chance.choice(["[1,0]<stderr>: ", "rank 12|", "\x1b[0m  ", "\r"]) + text
            if text.endswith("}") and chance.random() < 0.3:
                text += chance.choice(["Warning: lr", "\r", " 0: ", "}}", "\x00", " {"])
            if noisy and noisy[-1].endswith("}") and chance.random() < 0.2:
                text = noisy.pop() + text
            noisy.append(text)
        row = take(spot, noisy)
        assert row.pop("log")["damaged"] == 0
        assert row == {k: v for k, v in plain.items() if k != "log"}


def test_doubled_ranks(log: list[str], spot: Path) -> None:
    """Every line once more by every rank, later by its clock; first start and last stop count."""
    plain = take(spot, log)
    for seed in range(5):
        chance = random.Random(seed)
        doubled: list[str] = []
        for text in log:
            copies = [text]
            if ":::MLLOG" in text:
                for rank in range(1, chance.choice((2, 3, 9))):
                    delay = chance.choice((0, 0, 1, 40))
                    moved = re.sub(
                        r'"time_ms": (\d+)',
                        lambda m, d=delay: f'"time_ms": {int(m[1]) + d}',
                        text.removeprefix("0: "),
                    )
                    copies.append(f"{rank}: {moved}")
            doubled += copies
        chance.shuffle(doubled)  # ranks are flushed when they like
        row = take(spot, doubled)
        for name in ("status", "samples", "batch", "seed", "division", "system"):
            assert row[name] == plain[name], name
        assert row["quality"] == plain["quality"]
        assert row["evaluations"] == plain["evaluations"]
        assert value(row, "run_time_s") == told(doubled)["seconds"]
        if (once := value(plain, "run_time_s")) is not None:
            assert once <= (value(row, "run_time_s") or 0) <= once + 0.0401


def test_the_same_twice_is_once(log: list[str], spot: Path) -> None:
    plain, double = take(spot, log), take(spot, log + log)
    assert double["log"]["events"] == plain["log"]["events"]
    assert double["doubt"] == plain["doubt"]
    assert double["metrics"] == plain["metrics"]


def test_a_cut_line_with_another_behind(spot: Path) -> None:
    """The second is read, and lends nothing to the first."""
    joined = ':::MLLOG {"namespace": "", "time_ms": 5' + line("submission_benchmark", 10, "bert")
    lines = [text for text in made() if "submission_benchmark" not in text]
    row = take(spot, [joined, *lines, ':::MLLOG {"namespace": ""'])
    assert row["benchmark"] == "bert_pretraining"
    assert row["log"]["damaged"] == 2
    lines = [text for text in lines if "global_batch_size" not in text]
    assert "2 damaged lines may hold it" in take(spot, [joined, *lines, joined])["missing"]["batch"]


def test_lines_that_are_cut(log: list[str], spot: Path) -> None:
    """Some lines lose their end: the row says what the others say, and which are damaged."""
    events = [i for i, text in enumerate(log) if ":::MLLOG {" in text]
    for seed in range(25):
        chance = random.Random(seed)
        cut = list(log)
        lost = chance.sample(events, chance.choice((1, 2, 5, 20)))
        for i in lost:
            start = cut[i].index(":::MLLOG {") + len(":::MLLOG {")
            cut[i] = cut[i][: chance.randrange(start, len(cut[i]) - 2)]
        row = take(spot, cut)
        intact = [text for i, text in enumerate(log) if i not in lost]
        same(row, intact)
        assert row["log"]["damaged"] == len(lost)
        # The last evaluation is cut: its value must not be that of the one before.
        last = max(events, key=lambda i: ('"eval_accuracy"' in log[i], told([log[i]])["last"]))
        unsure = row["quality"]["value"] is None and told(intact)["accuracy"] is not None
        assert unsure or last not in lost or '"eval_accuracy"' not in cut[last]
        assert not unsure or any(
            '"eval_accuracy"' in cut[i] or '"key": "' not in cut[i] for i in lost
        )
        assert any(f"{len(lost)} MLPerf lines are cut" in text for text in row["doubt"])
        for i in lost:
            if '"run_stop"' in cut[i] and not told(intact)["seconds"]:
                assert f"line {i + 1} has one that is cut" in row["missing"]["run_time_s"]


def test_logs_that_end_early(log: list[str], spot: Path) -> None:
    """Cut anywhere, also within a character: what was there before counts, the rest is null."""
    data = "\n".join(log).encode()
    first = data.index(b":::MLLOG {") + 400
    for at in random.Random(1).sample(range(first, len(data)), 60):
        row = take(spot, data[:at])
        kept = data[:at].decode("utf-8", "ignore").split("\n")
        same(row, kept)
        if row["status"] == "no_run_stop":
            assert "cut off" in row["missing"]["status"]
            assert value(row, "time_to_target_s") is None


def test_logs_that_begin_late(log: list[str], spot: Path) -> None:
    at = next(i for i, text in enumerate(log) if '"run_start"' in text)
    row = take(spot, log[at:])
    assert row["benchmark"] == "unknown"
    assert row["system"] == "unknown"
    assert row["quality"]["metric"] == "eval_accuracy"
    assert value(row, "run_time_s") == told(log)["seconds"]
    row = take(spot, log[at + 1 :])
    assert value(row, "run_time_s") is None
    assert "run_start is not in the log" in row["missing"]["run_time_s"]
    assert {e["seconds"] for e in row["evaluations"]} <= {None}


def test_old_form_and_wrong_types(log: list[str], spot: Path) -> None:
    """Without event types, with any, and in the form before MLLOG: the same values."""
    plain = take(spot, log)

    def old(match: re.Match[str]) -> str:
        event = json.loads(match[1])
        rest = json.dumps({k: event[k] for k in ("value", "metadata")})
        return f":::MLL {event['time_ms'] / 1e3:.3f} {event['key']}: {rest}"

    forms = {
        "untyped": [re.sub(r'"event_type": "\w+", ', "", text) for text in log],
        "wrong": [re.sub(r"INTERVAL_(START|END)", "POINT_IN_TIME", text) for text in log],
        "null": [re.sub(r'"event_type": "\w+"', '"event_type": null', text) for text in log],
        "old": [re.sub(r":::MLLOG (\{.*\})", old, text) for text in log],
    }
    for name, lines in forms.items():
        row = take(spot, lines)
        assert row.pop("log")["facts"]["starts_and_stops_typed_wrongly"] > 3, name
        assert row == {k: v for k, v in plain.items() if k != "log"}, name
    assert plain["log"]["facts"]["starts_and_stops_typed_wrongly"] == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mixture(data: st.DataObject, spot: Path) -> None:
    """Lines dropped, repeated, reordered: never an invented number."""
    lines = made(success=data.draw(st.booleans()))
    picked = data.draw(st.lists(st.sampled_from(lines), min_size=1, max_size=60))
    if not any(":::MLLOG" in text for text in picked):
        picked.append(lines[1])
    same(take(spot, picked), picked)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b":::MLLOG ", b":::MLL 1.5 run_stop: ", b"\n", b'{"key": "seed"']),
            st.builds(
                lambda key, time, told, meta: (
                    ":::MLLOG "
                    + json.dumps({"key": key, "time_ms": time, "value": told, "metadata": meta})
                    + "\n"
                ).encode(),
                st.sampled_from(["run_start", "run_stop", "eval_accuracy", "train_samples",
                                 "global_batch_size", "seed", "submission_division", "init_stop",
                                 "submission_platform", "opt_epsilon", "x"]),
                st.one_of(st.integers(1, 10**13), st.floats(), st.none(), st.text(max_size=3)),
                st.recursive(
                    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
                    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
                    max_leaves=4,
                ),
                st.one_of(st.none(), st.just([1]), st.dictionaries(
                    st.sampled_from(["status", "epoch_num", "samples_count", "samples_before"]),
                    st.one_of(st.none(), st.integers(), st.floats(), st.text()))),
            ),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_garbage_is_refused_or_told(parts: list[bytes], spot: Path) -> None:
    """Whatever is in the file: a sound record, or a message that names it."""
    try:
        take(spot, b"".join(parts))
    except BadInput as error:
        assert spot.name in str(error)


# -- contradictions -------------------------------------------------------------------------------


def swap(lines: list[str], key: str, new: str | None) -> list[str]:
    """``lines`` with the line of ``key`` replaced, or without it."""
    found = [new if f'"key": "{key}"' in text else text for text in lines]
    return [text for text in found if text is not None]


def test_ranks_that_disagree(spot: Path) -> None:
    lines = made()
    t = 1_700_000_000_000
    end = t + 5_001 + 150_000 + 7
    row = take(spot, [*lines, line("global_batch_size", t + 100, 512)])
    assert row["batch"] is None
    assert row["missing"]["batch"] == "global_batch_size is 448, 512: no single value"
    row = take(spot, [*lines, line("train_samples", end, 5)])
    assert row["samples"] is None
    assert "no single count" in row["missing"]["samples"]
    assert "no samples" in row["missing"]["sequences_per_second_e2e"]
    row = take(spot, [*lines, line("run_stop", end + 3, None, status="aborted")])
    assert row["status"] == "unknown"
    assert row["missing"]["status"] == "run_stop has the status aborted, success"
    assert value(row, "time_to_target_s") is None
    assert value(row, "run_time_s") == 150.010
    row = take(spot, [*lines, line("eval_accuracy", t + 155_011, 0.9, epoch_num=5 * 335 * 448)])
    assert row["quality"]["value"] is None
    assert row["missing"]["accuracy"] == "ranks disagree about the last evaluation"
    assert len(row["evaluations"]) == 4


def test_success_without_the_accuracy(spot: Path) -> None:
    """A published run once claimed "0.340857 > 0.720000": such a success has no time to target."""
    lines = [text.replace('"value": 0.7203,', '"value": 0.340857,') for text in made()]
    row = take(spot, lines)
    assert row["status"] == "success"
    assert row["quality"]["reached"] is False
    assert value(row, "time_to_target_s") is None
    assert value(row, "run_time_s") == 150.007
    assert "says success, but its last evaluation is 0.340857, below 0.72" in row["doubt"]


def test_plans_are_no_samples(spot: Path) -> None:
    """train_samples before training ended is what somebody meant to train."""
    early = line("train_samples", 1_700_000_000_050, 3_502_080.0)
    row = take(spot, swap(made(), "train_samples", early))
    assert row["samples"] is None
    assert row["missing"]["samples"].startswith("train_samples (3502080.0) was logged before")
    assert "750400 at the last evaluation" in row["missing"]["samples"]
    few = line("train_samples", 1_700_000_155_008, 448)
    row = take(spot, swap(made(), "train_samples", few))
    assert row["missing"]["samples"] == (
        "train_samples is 448, fewer than the 750400 of the last evaluation"
    )


def test_clocks(spot: Path) -> None:
    t = 1_700_000_000_000
    early = line("run_stop", t + 5_000, None, status="success")
    row = take(spot, swap(made(), "run_stop", early))
    assert row["missing"]["run_time_s"] == (
        "run_stop is not after run_start: the clocks do not agree"
    )
    assert row["quality"]["value"] is None  # every evaluation is outside
    assert "5 evaluations before run_start or after run_stop are left out" in row["doubt"]
    row = take(spot, [*made(), line("eval_accuracy", t + 400_000, 0.73, epoch_num=900_000)])
    assert row["quality"]["value"] == 0.7203


def shifted(lines: list[str], after_s: int, by_s: int) -> list[str]:
    """``lines`` as written by a clock that is set back ``after_s`` seconds after run_start."""
    set_back = 1_700_000_005_001 + after_s * 1000
    return [
        re.sub(
            r'"time_ms": (\d+)',
            lambda m: f'"time_ms": {int(m[1]) - (by_s * 1000 if int(m[1]) > set_back else 0)}',
            text,
        )
        for text in lines
    ]


def with_stats(lines: list[str]) -> list[str]:
    """``lines`` with step lines 6 s apart."""
    stats = [
        line("tracked_stats", 1_700_000_005_001 + 6_000 * n, {"loss": 1.0}, epoch_num=n * 67 * 448)
        for n in range(1, 25)
    ]
    events = [text for text in lines if ":::MLLOG" in text]
    return sorted(events + stats, key=lambda text: LINE.findall(text)[0][0])


@pytest.mark.parametrize(
    ("after", "by", "stats", "told_as"),
    [
        (100, 50, False, "eval_accuracy in line"),
        (100, 3_600, False, "eval_accuracy in line"),
        (1, 3_600, False, "eval_accuracy in line"),  # all of the run but its start
        (150, 40, False, "run_stop in line"),  # behind the last evaluation
        (145, 20, True, "before tracked_stats in line"),  # behind the last step line
        (130, 20, True, "tracked_stats in line"),  # by less than two evaluations are apart
    ],
)
def test_a_clock_set_back_gives_no_times_and_no_last_evaluation(
    after: int, by: int, stats: bool, told_as: str, spot: Path
) -> None:
    lines = with_stats(made()) if stats else made()
    assert value(take(spot, lines), "run_time_s") == 150.007
    row = take(spot, shifted(lines, after, by))
    assert not {"run_time_s", "time_to_target_s", "sequences_per_second_e2e"} & set(row["metrics"])
    assert row["quality"]["value"] is row["samples"] is None
    assert row["evaluations"] == []
    assert row["missing"]["accuracy"].startswith("the clock was set back: ")
    assert any(
        text.startswith("the clock was set back: ") and told_as in text for text in row["doubt"]
    )


def test_joined_ranks_and_late_lines_are_no_clock_set_back(spot: Path) -> None:
    """Every rank's log behind the other; evaluations written at the end with their own times."""
    lines = with_stats(made())
    joined = take(spot, [*lines, *shifted(lines, -100, 1)])
    assert joined["quality"]["value"] == 0.7203
    assert value(joined, "run_time_s") == 151.007
    late = [text for text in lines if '"eval_accuracy"' in text or '"run_stop"' in text]
    row = take(spot, [*(text for text in lines if text not in late), *late])
    assert (row["quality"]["value"], value(row, "run_time_s")) == (0.7203, 150.007)
    assert not row["doubt"]


def test_two_runs_in_one_file(spot: Path) -> None:
    later = made(t=1_700_001_000_000)
    with pytest.raises(BadInput, match=r"result_0\.txt contains several runs.* run_start is in"):
        take(spot, made() + later)
    killed = [text for text in made() if '"run_stop"' not in text]
    with pytest.raises(BadInput, match="several runs, or a restarted one"):
        take(spot, killed + later)
    # Also when it was started again soon, or before its first evaluation.
    with pytest.raises(BadInput, match="several runs"):
        take(spot, [*killed, line("run_start", 1_700_000_045_000)])
    with pytest.raises(BadInput, match="several runs"):
        take(spot, killed[:20] + later)


def test_targets(spot: Path) -> None:
    bare = [text for text in made() if "target_mlm_accuracy" not in text]
    row = take(spot, bare)
    assert row["quality"]["target"] is None
    assert row["quality"]["reached"] is None
    assert value(row, "time_to_target_s") == 150.007  # that is what the log says
    for release, target in (("5.0", 0.72), ("1.0", 0.72), ("0.7", 0.712)):
        row = take(spot, bare, round=release)
        assert row["quality"]["target"] == target
        assert row["log"]["facts"]["target_from"].endswith(f"round {release}")
    large = [text for text in made(batch=8192) if "target_mlm_accuracy" not in text]
    assert take(spot, large, round="0.7")["quality"]["target"] == 0.706
    assert "the rule of round 9.9 is unknown" in take(spot, bare, round="9.9")["missing"]["target"]
    opened = [text.replace('"closed"', '"open"') for text in bare]
    assert take(spot, opened, round="5.0")["quality"]["target"] is None
    row = take(spot, [*made(), "python run.py --target_mlm_accuracy=0.33"])
    assert row["missing"]["target"] == "target_mlm_accuracy is 0.33, 0.72 in the log"


def test_epochs_are_no_samples(spot: Path) -> None:
    """Up to round 1.1 epoch_num is 1 throughout; a few epochs are no samples either."""
    for numbers in (lambda n: 1, lambda n: n):
        lines = made()
        for n in range(1, 6):
            lines = [text.replace(f'"epoch_num": {n * 335 * 448}', f'"epoch_num": {numbers(n)}')
                     for text in lines]  # fmt: skip
        row = take(spot, lines)
        assert {e["samples"] for e in row["evaluations"]} == {None}
        assert "does not count samples" in row["missing"]["evaluation_samples"]
        assert row["samples"] == 5 * 335 * 448  # from train_samples


def test_placeholders_and_hostile_names(spot: Path) -> None:
    lines = [text.replace("1xACME One", "16xSUBMISSION_PLATFORM_PLACEHOLDER") for text in made()]
    row = take(spot, lines)
    assert row["system"] == "unknown"
    assert "PLACEHOLDER, a placeholder" in row["missing"]["system"]
    hostile = "<script>alert(1)</script>\\u001b[2J" + "x" * 500
    row = take(spot, [text.replace("ACME", hostile) for text in made()])
    assert row["submitter"].isprintable()
    assert len(row["submitter"]) <= 200


def test_values_that_are_none(spot: Path) -> None:
    odd = ['"0.99"', "NaN", "Infinity", "1e999", "true", "1.5", "-0.1", "[0.9]", "{}", "9" * 400]
    for text in odd:
        later = line("eval_accuracy", 1_700_000_155_005, 12345, epoch_num=1_000_000)
        row = take(spot, [*made(), later.replace("12345", text)])
        assert row["quality"]["value"] == 0.7203, text
        assert "1 eval_accuracy lines have no value between 0 and 1" in row["doubt"]
    for text in ("NaN", "true", '"448"', "448.5", "-448", "0", "null", "1e999"):
        row = take(spot, [t.replace('"value": 448,', f'"value": {text},') for t in made()])
        assert row["batch"] is None, text
        assert row["missing"]["batch"]
    deep = '{"a":' * 5_000
    row = take(spot, [*made(), ":::MLLOG " + deep, ':::MLLOG {"key": "seed", "time_ms": "soon"}'])
    assert row["log"]["damaged"] == 2


# -- what is not one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not an MLPerf log: none of its 0 lines"),
        (b"\x00\xff" * 10_000, "not an MLPerf log"),
        (b"hello\nworld\n", "none of its 2 lines has ':::MLLOG'"),
        (b":::MLLOG {\n:::MLLOG\n", "none of its 2 MLPerf lines can be read .the first is line 1"),
        (gzip.compress(b":::MLLOG {}\n", mtime=0), "it is compressed: unpack it first"),
        ("\n".join(made()).replace('"bert"', '"resnet"').encode(), "a log of resnet, not of BERT"),
        (line("loadgen_version", 5, "4.0").encode(), "LoadGen .inference."),
    ],
)
def test_what_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result_0.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        import_log(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is missing"):
        import_log(tmp_path / "none")
    with pytest.raises(BadInput, match="is a folder: name its result_"):
        import_log(tmp_path)


def test_good_files_beside_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "a.txt", tmp_path / "b.txt"
    good.write_text("\n".join(made()))
    bad.write_text("nothing")
    out = str(tmp_path / "out")
    assert bertbench(["import-mlperf", str(bad), str(good), "--output", out, "--json"]) == 1
    report = capsys.readouterr()
    content = json.loads(report.out)
    assert len(content["imported"]) == len(content["refused"]) == 1
    assert "b.txt is not an MLPerf log" in report.err
    written = load_published(Path(content["imported"][0]["file"]))
    assert written == content["imported"][0]["record"]
    assert bertbench(["import-mlperf", str(bad), "--output", out]) == 2
    assert bertbench(["import-mlperf", str(good), "--round", "five", "--output", out]) == 2
    assert bertbench(["import-mlperf", str(good), "--devices", "0", "--output", out]) == 2
    assert bertbench(["import-mlperf", str(good), "--output", str(good / "x")]) == 2
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_what_is_given_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result_3.txt"
    path.write_text("\n".join(made()))
    flags = ["--round", "4.1", "--submitter", "Me & Co", "--system", "../../x", "--devices", "8",
             "--device", "One"]  # fmt: skip
    out = tmp_path / "out"
    assert bertbench(["import-mlperf", str(path), *flags, "--output", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["imported"][0]["record"]["rows"][0]
    assert (row["round"], row["submitter"]) == ("4.1", "Me & Co")
    assert (row["devices"], row["device"]) == (8, "One")
    assert row["log"]["facts"]["given"] == "device, devices, round, submitter, system"
    (file,) = out.iterdir()
    assert re.fullmatch(r"mlperf_v4\.1_me-co_x_result-3_[0-9a-f]{8}\.json", file.name)


def test_folders_of_a_results_repository(tmp_path: Path) -> None:
    """Round, submitter and system from them, devices from the system's description there."""

    def place(*parts: str) -> Path:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(made()))
        return path

    path = place("training_results_v3.1", "Org", "results", "sys8", "bert", "result_0.txt")
    description = path.parents[3] / "systems" / "sys8.json"
    description.parent.mkdir()
    description.write_text(json.dumps({
        "number_of_nodes": "2", "accelerators_per_node": 8, "accelerator_model_name": "Fast One",
    }))  # fmt: skip
    known = Origin.of(path)
    assert (known.round, known.submitter, known.system) == ("3.1", "Org", "sys8")
    assert (known.devices, known.device) == (16, "Fast One")
    for broken in ("", "[]", "{}", '{"number_of_nodes": 1, "accelerators_per_node": null}'):
        description.write_text(broken)
        assert Origin.of(path).devices is None
    description.write_text('{"number_of_nodes": 4, "accelerators_per_node": 0}')
    assert Origin.of(path).devices is None
    assert Origin.of(place("v0.7", "closed", "O", "results", "s", "bert", "r.txt")).round == "0.7"
    # A user's folders are no submitter.
    assert Origin.of(place("somebody", "results", "s", "bert", "r.txt")) == Origin()
    assert Origin.of(place("v3.1", "Org", "logs", "s", "bert", "r.txt")) == Origin()


def test_our_own_logs(tmp_path: Path, spot: Path) -> None:
    """What our runs write is read as any other's."""
    path = tmp_path / "result_0.txt"
    log = MlperfLog(
        path, division="open", org="us", platform="here", status="onprem", seed=3,
        values={"global_batch_size": 16},
    )  # fmt: skip
    log.init_start()
    log.init_stop()
    log.run_start(step=0, samples=0)
    for step, accuracy in ((10, 0.1), (20, 0.3)):
        metrics = {"mlm_accuracy": accuracy, "num_samples": 100}
        log.on_eval(
            EvalEvent(
                step=step, samples=step * 16, metrics=metrics, target_metric="mlm_accuracy",
                target_value=None, reached=False, eval_s=0.1, time_s=1.0,
            )
        )  # fmt: skip
    log.run_stop(step=20, samples=320, status="success")
    log.close(RunSummary(status="ok", reason="", step=20, samples=320))
    row = import_log(path)["rows"][0]
    assert (row["samples"], row["quality"]["value"], row["status"]) == (320, 0.3, "success")
    assert [e["samples"] for e in row["evaluations"]] == [160, 320]
    assert (row["system"], row["submitter"], row["division"]) == ("here", "us", "open")
    assert row["missing"]["target"]
    # A log that goes on from a checkpoint has samples that are not of its own time.
    text = made()
    later = [t.replace('"key": "run_start", "value": null, "metadata": {',
                       '"key": "run_start", "value": null, "metadata": {"samples_before": 99, ')
             for t in text]  # fmt: skip
    row = take(spot, later)
    assert "continues another" in row["missing"]["sequences_per_second_e2e"]


# -- what no whole run's log says -------------------------------------------------------------


def test_a_resumed_log_gives_no_time_to_target(spot: Path) -> None:
    text = made()
    text.insert(-8, line("resumed", 1_700_000_100_000, 900_000, step=10))
    row = take(spot, text)
    assert "time_to_target_s" not in row["metrics"]
    assert "sequences_per_second_e2e" not in row["metrics"]
    assert "was resumed" in row["missing"]["time_to_target_s"]
    assert any("was resumed" in doubt for doubt in row["doubt"])
    assert "not of one whole run" in row["metrics"]["run_time_s"]["definition"]


def test_a_log_of_the_later_part_gives_no_time_to_target(spot: Path) -> None:
    later = [t.replace('"key": "run_start", "value": null, "metadata": {',
                       '"key": "run_start", "value": null, "metadata": {"samples_before": 99, ')
             for t in made()]  # fmt: skip
    row = take(spot, later)
    assert "time_to_target_s" not in row["metrics"] and row["doubt"]


def scaled(factor: float, shift: float = 0) -> list[str]:
    """The made log with its times in another unit."""
    return [
        re.sub(r'"time_ms": (\d+)', lambda m: f'"time_ms": {int(m[1]) * factor + shift}', text)
        for text in made()
    ]


@pytest.mark.parametrize(
    ("factor", "shift", "unit"),
    [(1e-3, 0, "seconds?"), (1, -1_690_000_000_000, "no set clock?"), (1e-6, 0, "another unit"),
     (10, 0, "another unit")],
)  # fmt: skip
def test_a_clock_of_another_unit_gives_a_doubt_and_no_durations(
    spot: Path, factor: float, shift: float, unit: str
) -> None:
    row = take(spot, scaled(factor, shift))
    assert any(unit in doubt for doubt in row["doubt"])
    assert not {"run_time_s", "time_to_target_s", "init_s", "sequences_per_second_e2e"} & set(
        row["metrics"]
    )
    assert import_log(spot)["source"]["date"] is None
    assert all(e["seconds"] is None for e in row["evaluations"]) and row["quality"]["value"]


def test_lines_without_end_are_read_in_pieces(spot: Path) -> None:
    text = "\n".join(made())
    huge = "x" * (2 << 20)
    row = take(spot, f"{huge}\n{text}\n{huge}".encode())
    assert row["status"] == "success" and not row["doubt"]
    within = text.replace('"value": "ACME"', f'"value": "{huge}"')
    row = take(spot, within.encode())
    assert row["submitter"] is None and "cut or damaged" in " ".join(row["doubt"])
    with pytest.raises(BadInput, match="none of its"):
        take(spot, bytes(3 << 20))


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "9" * 5000, "1" + "0" * 400, "1e999", '{"a":' * 900 + "1" + "}" * 900,
              '"\\ud800\\u202e\\u001b[2J"'],
)  # fmt: skip
@pytest.mark.parametrize("key", ["seed", "submission_platform", "eval_accuracy", "run_stop"])
def test_a_hostile_value_is_one_line(
    spot: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = re.compile(rf'("key": "{key}", "value": ).*?(, "metadata")')
    text = [place.sub(lambda m: m[1] + value + m[2], t) for t in made()]
    spot.write_text("\n".join(text))
    assert bertbench(["import-mlperf", str(spot), "--output", str(spot.parent / "out")]) in (0, 2)
    said = capsys.readouterr()
    for told_line in (said.out + said.err).split("\n"):
        assert told_line.isprintable() and len(told_line) < 700
