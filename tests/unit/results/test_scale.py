# SPDX-License-Identifier: Apache-2.0
"""Scaling: the arithmetic to the digit, what is started, what is refused, and one real table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertbench.common.cli.main import main as cli
from bertbench.common.cli.scale import Budget, main
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.launch.subprocess_runs import Starter
from bertbench.common.results.scaling import HOST_NOTE, ScalingPoint, as_dict, fill, relate, render
from bertbench.common.results.store import load_results
from tests.unit.results.constructed import device, make_run

ROOT = Path(__file__).parents[3]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_runner.py")))
FAKES = Starter(program=FAKE, torchrun=FAKE)
CPU = {"name": "cpu_ref", "ok": True, "reason": "", "accelerator": False, "device_count": 1,
       "device": "a CPU"}  # fmt: skip
CARDS = {**CPU, "name": "accel", "accelerator": True, "device_count": 4, "device": "a card"}
RATES = {"1": 100.0, "2": 180.0, "4": 300.0, "8": 480.0}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_RATES", json.dumps(RATES))
    monkeypatch.delenv("FAKE_BEHAVIOUR", raising=False)
    return tmp_path


def started(place: Path) -> list[dict[str, Any]]:
    log = place / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def scale(
    place: Path, *own: str, flags: tuple[str, ...] = (), backends: tuple[Any, ...] = (CARDS, CPU)
) -> int:
    words = ["run", "mini", "--output_dir", str(place / "out"), *flags]
    return main(
        [*own, "--", *words],
        starter=FAKES,
        examine=lambda backend: {"cores": 2, "backends": list(backends)},
    )


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def rows_of(root: Path, batches: dict[int, int], **changed: Any) -> list[ScalingPoint]:
    rows = []
    for devices, batch in batches.items():
        make_run(root / str(devices), {"sequences_per_second": RATES[str(devices)]},
                 world_size=devices, global_batch=batch, **changed)  # fmt: skip
        rows.append(ScalingPoint(devices=devices, global_batch=batch))
        fill(rows[-1], load_results([root / str(devices)], references=False)[0])
    return rows


def test_weak_scaling_to_the_digit(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {1: 20, 2: 40, 4: 80, 8: 160})
    relate(rows, weak=True, shares_host=False)
    assert [row.efficiency for row in rows] == [1.0, 0.9, 0.75, 0.6]
    assert [row.rate_per_device for row in rows] == [100.0, 90.0, 75.0, 60.0]
    assert [row.step_s for row in rows] == [20 / 100, 40 / 180, 80 / 300, 160 / 480]
    assert [row.beyond_s for row in rows] == [
        0.0, 40 / 180 - 0.2, 80 / 300 - 0.2, 160 / 480 - 0.2,
    ]  # fmt: skip
    found = as_dict(rows, weak=True, synthetic=False, repeats=1)
    assert found["scalability"]["value"] == 0.6
    assert found["scalability"]["definition"].startswith("rate(8) / (8 x rate(1)), weak: the same")
    assert "strong" not in found["definitions"]
    text = render(json.loads(json.dumps(found)))
    assert "scalability  0.600 = rate(8) / (8 x rate(1)), weak" in text
    assert "beyond       step_s(N) - step_s(1): the cost of communication and imbalance" in text
    assert "all-reduce   seconds, adding a step's gradients over all ranks" in text
    assert "indicative: 1 run(s)" in text


def reduced(root: Path, weak: bool, shares_host: bool) -> list[ScalingPoint]:
    """One and two devices: 200 and 222 ms a step, whose all-reduce takes 40 ms alone."""
    rows = []
    for devices, metrics in (
        (1, {"sequences_per_second": 100.0}),
        (2, {"sequences_per_second": 180.0, "gradient_all_reduce_s": 0.04,
             "gradient_all_reduce_bytes": 2_680_000_000}),
    ):  # fmt: skip
        batch = 20 * (devices if weak else 1)
        make_run(root / str(devices), metrics, world_size=devices, global_batch=batch)
        rows.append(ScalingPoint(devices=devices, global_batch=batch))
        fill(rows[-1], load_results([root / str(devices)], references=False)[0])
    relate(rows, weak=weak, shares_host=shares_host)
    return rows


def test_what_a_step_hides_of_its_all_reduce_and_what_it_sends(tmp_path: Path) -> None:
    one, two = rows = reduced(tmp_path / "a", weak=True, shares_host=False)
    assert one.hidden is one.gradient_all_reduce_bytes is None  # one process sends nothing
    assert two.hidden == pytest.approx(1 - (40 / 180 - 0.2) / 0.04)
    found = json.loads(json.dumps(as_dict(rows, weak=True, synthetic=False, repeats=1)))
    assert found["rows"][1]["gradient_all_reduce_bytes"] == 2_680_000_000
    text = render(found)
    assert text.splitlines()[2].split()[8:10] == ["0.04", "0.44"]
    assert "hidden       1 - beyond_s / gradient_all_reduce_s" in text
    assert "bytes        2,680,000,000, a step's gradients of one process" in text
    # A smaller share of each device is no communication; one processor hides nothing of its own.
    assert reduced(tmp_path / "b", weak=False, shares_host=False)[1].hidden is None
    assert reduced(tmp_path / "c", weak=True, shares_host=True)[1].hidden is None


def test_strong_scaling_to_the_digit(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {1: 16, 2: 16, 4: 16})
    relate(rows, weak=False, shares_host=False)
    assert [row.efficiency for row in rows] == [1.0, 0.9, 0.75]
    assert [row.beyond_s for row in rows] == [0.0, 16 / 180 - 0.16 / 2, 16 / 300 - 0.16 / 4]
    found = as_dict(rows, weak=False, synthetic=False, repeats=1)
    assert "step_s(1) / N" in found["definitions"]["beyond_s"]


def test_without_one_device_nothing_is_relative(tmp_path: Path) -> None:
    rows = [ScalingPoint(devices=1, global_batch=8), *rows_of(tmp_path, {2: 16})]
    relate(rows, weak=True, shares_host=False)
    assert rows[1].rate == 180.0 and rows[1].efficiency is None
    assert rows[1].note == "one device has no rate: no baseline"


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"precision": "fp32"}, "precision fp32, not bf16"),
     ({"devices": [device(name="Card 2")] * 2}, "device Card 2, not Card 1"),
     ({"extras": {"precision": "bf16", "kernels": {"matmul": "x"}}}, "kernels {'matmul': 'x'}")],
)  # fmt: skip
def test_what_is_not_the_same_has_no_efficiency(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    rows = [*rows_of(tmp_path, {1: 8}), *rows_of(tmp_path, {2: 16}, **changed)]
    relate(rows, weak=True, shares_host=False)
    assert rows[1].efficiency is None and said in str(rows[1].note)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(["ok", "oom", "below_quality"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_random_records_give_a_table(
    tmp_path_factory: Any, found: list[tuple[float, str]], weak: bool
) -> None:
    root, rows = tmp_path_factory.mktemp("random"), []
    for place, (rate, status) in enumerate(found):
        devices = 2**place
        folder = make_run(root, {"sequences_per_second": rate}, status=status,
                          extras={"micro_batch": "\x1b[31m", "kernels": [rate]})  # fmt: skip
        rows.append(ScalingPoint(devices=devices, global_batch=8))
        fill(rows[-1], load_results([folder], references=False)[0])
    relate(rows, weak=weak, shares_host=False)
    told = as_dict(rows, weak=weak, synthetic=False, repeats=1)
    assert render(json.loads(json.dumps(told, allow_nan=False))).replace("\n", "").isprintable()


def test_weak_scaling_starts_the_same_batch_per_device(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale(place, "--devices", "1,2,4", "--json") == 0
    found = told(capsys)
    runs = started(place)
    assert [run["world"] for run in runs] == [1, 2, 4]
    batches = [run["words"][run["words"].index("--global_batch") + 1] for run in runs]
    assert batches == ["16", "32", "64"] and runs[0]["words"][-1] == "--json"
    assert all("accel" in run["words"] and "--synthetic" not in run["words"] for run in runs)
    assert [row["efficiency"] for row in found["rows"]] == [1.0, 0.9, 0.75]
    assert found["rows"][2]["quality"]["value"] == 0.5
    assert (found["mode"], found["scalability"]["value"]) == ("weak", 0.75)
    kept = json.loads(Path(found.pop("path")).read_text())
    assert kept == found
    assert all(Path(row["records"][0], "manifest.json").exists() for row in found["rows"])


def test_strong_scaling_shares_the_batch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale(place, "--devices", "1,4", "--strong") == 0
    batches = [run["words"][run["words"].index("--global_batch") + 1] for run in started(place)]
    assert batches == ["16", "16"]
    assert "scalability  0.750 = rate(4) / (4 x rate(1)), strong" in capsys.readouterr().out


def test_one_device_is_always_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale(place, "--devices", "2") == 0
    assert [run["world"] for run in started(place)] == [1, 2]
    assert "adding 1 device" in capsys.readouterr().out


def test_repeats_take_turns_and_their_median_counts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale(place, "--devices", "1,2", "--repeats", "3", "--json") == 0
    assert [run["world"] for run in started(place)] == [1, 2, 1, 2, 1, 2]
    assert told(capsys)["rows"][1]["rates"] == [180.0] * 3


def test_a_preflight_is_short_and_has_no_accuracy(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale(place, "--devices", "1,2,4", "--synthetic") == 0
    for run in started(place):
        words = run["words"]
        assert "--synthetic" in words and "--skip_checkpoint" in words
        assert words[words.index("--eval_iter_samples") + 1] == "0"
        assert 0 < float(words[words.index("--max_minutes") + 1]) <= 2
    text = capsys.readouterr().out
    assert "a preflight of throughput, without accuracy" in text and "scalability  0.750" in text


def test_a_preflight_keeps_to_its_time() -> None:
    now = 0.0
    budget = Budget(9, 4, now=lambda: now)
    for _ in range(4):
        seconds = budget.next()
        assert 5 <= seconds <= 120
        now += seconds + 90  # what each run needs besides
        budget.spent(seconds + 90, seconds)
    assert now <= 540
    late = Budget(1, 4, now=lambda: 1e9)
    late.spent(1000.0, 10.0)
    assert late.next() == 5


def test_a_failed_run_is_a_row(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"x2": "oom", "x4": "kill"}))
    monkeypatch.setenv("FAKE_RATES", json.dumps({"1": 100.0}))
    assert scale(place, "--devices", "1,2,4", "--json") == 1
    captured = capsys.readouterr()
    one, two, four = json.loads(captured.out)["rows"]
    assert (one["efficiency"], two["efficiency"], four["efficiency"]) == (1.0, None, None)
    assert (two["statuses"], four["statuses"]) == (["oom"], ["killed"])
    assert "exit code -9: about to die" in four["reason"]
    assert "[3/3]" in captured.err


def test_a_refusal_of_one_device_ends_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"42": "refuse"}))
    with pytest.raises(Unsupported, match="no such thing"):
        scale(place, "--devices", "1,2")
    assert len(started(place)) == 1 and not (place / "out" / "scales").exists()


def test_more_devices_than_there_are_is_refused_with_the_fix(place: Path) -> None:
    with pytest.raises(Unsupported, match=r"accel has 4 devices here, not 8: --devices 1,2,4$"):
        scale(place)
    with pytest.raises(Unsupported, match="has 1 device here, not 2"):
        scale(place, "--devices", "1,2", backends=({**CARDS, "device_count": 1}, CPU))
    assert not started(place)


def test_ranks_on_the_host_say_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--backend", "cpu_ref")
    assert scale(place, "--devices", "1,2", "--json", flags=flags, backends=(CPU,)) == 0
    captured = capsys.readouterr()
    one, two = json.loads(captured.out)["rows"]
    assert (one["note"], two["note"]) == (None, HOST_NOTE) and HOST_NOTE in captured.err
    assert two["efficiency"] == 0.9 and json.loads(captured.out)["shares_host"]
    assert json.loads(captured.out)["scalability"]["note"] == HOST_NOTE


def test_without_an_accelerator_the_cpu_must_be_named(place: Path) -> None:
    with pytest.raises(Unsupported, match="To run it on the CPU: --backend cpu_ref"):
        scale(place, "--devices", "1,2", backends=(CPU,))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (("--devices", "1,x"), "give numbers from 1"),
        (("--devices", "0"), "give numbers from 1"),
        (("--devices", ""), "give numbers from 1"),
        (("--devices", "1,3", "--strong"), "16 cannot be shared evenly by 3 devices: --devices 1,"),
        (("--weak", "--strong"), "not allowed with"),
        (("--repeats", "0"), "--repeats must be at least 1"),
    ],
)
def test_what_cannot_be_scaled_is_refused(place: Path, own: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        scale(place, *own)
    assert not started(place)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["scale", "--help"])
    assert "the same sequences per device" in capsys.readouterr().out
    assert cli(["scale", "--devices", "1,2"]) == 2


@pytest.mark.skipif(
    not Path(sys.executable).with_name("bertbench").exists(), reason="bertbench is not installed"
)
def test_two_real_processes_on_the_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bertbench", "scale", "--devices", "1,2", "--synthetic", "--json",
         "--", "run", "mini", "--backend", "cpu_ref", "--output_dir", str(tmp_path),
         *"--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2".split(),
         *"--intermediate_size 64 --max_seq_length 64 --max_position_embeddings 64".split(),
         *"--max_predictions_per_seq 10 --global_batch 8 --max_steps 12 --log_freq 4".split(),
         *"--warmup_steps 2 --vocab_size 256 --num_threads 1".split()],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    one, two = found["rows"]
    assert (one["global_batch"], two["global_batch"]) == (8, 16)
    assert two["efficiency"] == two["rate"] / (2 * one["rate"]) == found["scalability"]["value"]
    assert two["beyond_s"] == two["step_s"] - one["step_s"] and two["note"] == HOST_NOTE
    results, damaged = load_results([tmp_path], references=False)
    assert not damaged and sorted(str(r.world_size) for r in results) == ["1", "2"]
    assert {r.num_devices for r in results} == {1}
    assert cli(["validate", *(str(r.path) for r in results)]) == 0
    assert cli(["compare", one["records"][0], two["records"][0]]) == 2
