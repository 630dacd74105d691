# SPDX-License-Identifier: Apache-2.0
"""Whatever lies in a folder of results, loading it gives what is good and names what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput
from bertbench.common.results import store
from bertbench.common.results.result import HOST
from bertbench.common.results.seals import sealed
from bertbench.common.results.store import Damaged, Result, load_results, parse
from bertbench.common.results.validate import validate
from tests.unit.results.constructed import device, make_run, seal


@pytest.fixture(autouse=True)
def no_references(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> None:
    monkeypatch.setattr(store, "REFERENCE", tmp_path_factory.mktemp("none") / "reference")


def only(path: Path) -> Result:
    (result,), damaged = load_results([path])
    assert not damaged
    return result


def problem(path: Path) -> str:
    results, (damaged,) = load_results([path])
    assert not results and isinstance(damaged, Damaged)
    assert "\n" not in damaged.problem and damaged.problem.isprintable()
    return damaged.problem


def change(folder: Path, **values: Any) -> Path:
    """Write other values into a manifest, with its checksum; the other files stay."""
    file = folder / "manifest.json"
    content = json.loads(file.read_text()) | values
    file.write_text(sealed(json.dumps({k: v for k, v in content.items() if v is not ...})))
    return folder


def test_a_run_is_what_its_record_says(tmp_path: Path) -> None:
    quality = {"metric": "acc", "value": 0.5, "target": 0.4, "reached": True, "samples": 80}
    folder = make_run(
        tmp_path, {"sequences_per_second": 10.5, "acc": 0.5}, seed=7, world_size=2, quality=quality
    )
    found = {p.text.split(",")[0] for p in validate(folder) if p.severity == "error"}
    assert found == {  # the schemas, sums and all else hold
        "its recipe and inputs have hash 5ddb4ac28ce2902a",
        "does not hold one run from run_start to run_stop",
        "has a quality",
    }
    run = only(folder)
    assert (run.kind, run.run_id, run.path) == ("run", folder.name, folder)
    assert (run.status, run.seed, run.world_size, run.num_devices) == ("ok", 7, 2, 2)
    assert (run.backend, run.precision, run.simulated) == ("accel", "bf16", False)
    assert (run.system_name, run.benchmark, run.preset) == ("1x-card", "bert_pretraining", "toy")
    assert run.recipe_hash == "0123456789abcdef" and run.data_hash == "d1"
    assert run.title == "toy, bf16, 2 x Card 1, seed 7"
    assert run.quality == quality and run.created == "2026-01-02T00:00:00Z"
    assert run.metrics["sequences_per_second"]["direction"] == "higher"
    assert (run.value("acc"), run.value("power_w")) == (0.5, None)


def test_processes_of_the_host_share_one_device(tmp_path: Path) -> None:
    shared = [device(0, backend=HOST)] * 2
    run = only(make_run(tmp_path, world_size=2, devices=shared))
    assert (run.world_size, run.num_devices) == (2, 1)
    assert "1 x Card 1, 2 processes" in run.title


def test_different_devices_have_no_common_name(tmp_path: Path) -> None:
    mixed = [device(0), device(1, name="Card 2")]
    run = only(make_run(tmp_path, world_size=2, devices=mixed))
    assert run.device_name is None and "1x-card" in run.title


def test_simulated_is_known_from_either_file(tmp_path: Path) -> None:
    by_manifest = make_run(tmp_path / "a", simulated=True)
    by_system = make_run(tmp_path / "b", devices=[device(simulated=True)], simulated=False)
    assert only(by_manifest).simulated and only(by_system).simulated


def test_an_old_record_loads(tmp_path: Path) -> None:
    """Before there were simulated devices, and before a run said which backend it had."""
    folder = make_run(tmp_path, {"sequences_per_second": 1.0})
    run = only(change(folder, simulated=..., extras={}))
    assert (run.simulated, run.backend, run.precision) == (False, "accel", None)


def test_an_unfinished_record_loads(tmp_path: Path) -> None:
    run = only(make_run(tmp_path, status="interrupted", finished=False, finished_utc=None))
    assert (run.status, run.metrics, run.quality) == ("interrupted", {}, None)


def test_folders_are_searched_in_the_order_of_time(tmp_path: Path) -> None:
    made = [make_run(tmp_path, seed=s) for s in (3, 1, 2)]
    checkpoint = made[0] / "checkpoints" / "step_1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    hidden = tmp_path / ".trash" / "run"
    hidden.mkdir(parents=True)
    (hidden / "manifest.json").write_text("{}")
    named = [tmp_path, made[1], made[2] / "manifest.json", str(tmp_path / "1x-card")]
    results, damaged = load_results(named)
    assert [r.seed for r in results] == [3, 1, 2] and not damaged


def test_links_are_followed_and_hidden_records_named(tmp_path: Path) -> None:
    linked, folder, hidden, named = (make_run(tmp_path / x, seed=s) for s, x in enumerate("abcd"))
    root = tmp_path / "results"
    (root / "sub").mkdir(parents=True)
    (root / "system").symlink_to(tmp_path / "a" / "1x-card")
    (root / "sub" / folder.name).symlink_to(folder)
    (root / "sub" / "loop").symlink_to(root)
    (root / "sub" / "gone").symlink_to(tmp_path / "nowhere")
    (root / ".old").mkdir()
    hidden = hidden.rename(root / ".old" / hidden.name)
    (root / "checkpoints").mkdir()
    named = named.rename(root / "checkpoints" / named.name)
    step = root / "checkpoints" / "step_00000001"
    step.mkdir()
    (step / "manifest.json").write_text("{}")
    results, (left_out,) = load_results([root])
    assert [r.run_id for r in results] == [linked.name, folder.name, named.name]
    assert left_out.path == hidden and "hidden folder .old" in left_out.problem
    results, damaged = load_results([root / ".old"])
    assert [r.run_id for r in results] == [hidden.name] and not damaged


def test_a_copy_does_not_count_twice(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", run_id="one")
    make_run(tmp_path / "b", run_id="one")
    results, (damaged,) = load_results([tmp_path])
    assert [r.path for r in results] == [folder]
    assert "the same run" in damaged.problem


def test_runs_without_steps_are_told_apart_by_their_files(tmp_path: Path) -> None:
    """As performance tests of LoadGen, whose events have no times."""
    events = '{"kind": "run_start", "step": 0}\n{"kind": "run_stop", "step": 0}\n'
    for name, made in (("a", "2026-01-02T00:00:00Z"), ("b", "2026-01-02T00:05:00Z")):
        folder = make_run(tmp_path / name, step=0, created_utc=made)
        (folder / "steps.jsonl").write_text(events)
        seal(folder)
    results, damaged = load_results([tmp_path])
    assert len(results) == 2 and not damaged


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_results([tmp_path / "nothing"])
    assert load_results([tmp_path]) == ([], [])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema_version": 2}, "unknown schema_version 2"),
        ({"schema_version": True}, "unknown schema_version"),
        ({"run_id": ...}, "no run_id"),
        ({"system": ["x"]}, "no system"),
        ({"status": "fine\x1b[2J"}, "unknown status"),
        ({"status": ["ok"]}, "unknown status"),
        ({"seed": 1.5}, "no valid seed"),
        ({"world_size": -1}, "no valid world_size"),
        ({"world_size": True}, "no valid world_size"),
        ({"metrics": None}, "no metrics"),
        ({"metrics": [3]}, "without a name"),
        ({"metrics": [{"name": "x", "value": None, "unit": ""}]}, "x has no value"),
        ({"metrics": [{"name": "x", "value": 10**400, "unit": ""}]}, "x has no value"),
        ({"metrics": [{"name": "x", "value": 1}] * 2}, "x occurs twice"),
        ({"metrics": [{"name": "x", "value": 1, "unit": 5}]}, "a malformed description"),
        ({"metrics": [{"name": "x\n\x1b[31m", "value": "1"}]}, "x??[31m has no value"),
        ({"quality": "good"}, "a malformed quality"),
        ({"quality": {"value": "high"}}, "a malformed quality"),
        ({"files": []}, "no list of files"),
        ({"files": {"../../etc/passwd": {"bytes": 1}}}, "malformed entry"),
        ({"files": {"a\0b": {"bytes": 1}}}, "a?b is missing"),
        ({"files": {"gone": {"bytes": 1}}}, "gone is missing"),
    ],
)
def test_a_manifest_that_says_nonsense_is_named(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    assert said in problem(change(make_run(tmp_path), **values))


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "system.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b'{"schema_version": 1', "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[]", "is not a JSON object"),
        (b"[" * 100_000, "cannot be read: its brackets are nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", ""),
        (None, "is missing"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    folder = make_run(tmp_path, status="interrupted", finished=False)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    if name == "manifest.json" and content is None:
        said = "has no manifest.json"
    assert said in problem(folder)


def test_files_that_are_none_do_not_hold_up(tmp_path: Path) -> None:
    pipe, tree = (
        make_run(tmp_path / name, status="interrupted", finished=False) for name in ("a", "b")
    )
    (pipe / "config.json").unlink()
    os.mkfifo(pipe / "config.json")
    (tree / "manifest.json").unlink()
    (tree / "manifest.json").mkdir()
    assert "not a plain file" in problem(pipe)
    assert "not a plain file" in problem(tree)


def test_a_number_changed_in_a_sealed_manifest_is_found(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"sequences_per_second": 12.5})
    manifest = folder / "manifest.json"
    assert only(folder).value("sequences_per_second") == 12.5
    manifest.write_text(manifest.read_text().replace("12.5", "99.5"))
    assert "manifest.json differs from its checksum" in problem(folder)


def test_a_changed_or_cut_file_is_named(tmp_path: Path) -> None:
    cut = make_run(tmp_path / "a", lines='{"kind": "run_start"}\n')
    (cut / "steps.jsonl").write_text('{"kind": "run')
    changed = make_run(tmp_path / "b")
    text = (changed / "config.json").read_text()
    (changed / "config.json").write_text(text.replace("42", "43"))
    assert problem(cut) == "steps.jsonl has 13 bytes, not 38"
    assert problem(changed) == "config.json differs from its checksum"


def test_damage_does_not_hide_the_good(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    (make_run(tmp_path, seed=2) / "manifest.json").write_text("{")
    make_run(tmp_path, seed=3)
    results, damaged = load_results([tmp_path])
    assert [r.seed for r in results] == [1, 3] and len(damaged) == 1


def test_lines_that_were_cut_are_left_out(tmp_path: Path) -> None:
    lines = '{"kind": "step", "loss": NaN, "rate": 1e999}\n\n[1]\n{"kind": "eval"}\n{"kind": "st'
    run = only(make_run(tmp_path, lines=lines))
    assert list(run.steps()) == [{"kind": "step", "loss": None, "rate": None}, {"kind": "eval"}]
    assert list(run.telemetry()) == []


def test_text_that_could_not_be_written_is_made_whole(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    text = (folder / "manifest.json").read_text().replace('"it is ok"', '"a\\ud800b"')
    (folder / "manifest.json").write_text(sealed(text))
    assert only(folder).reason == "a?b"


def published(path: Path, **changed: Any) -> Path:
    row = {
        "system": "BI-V100", "devices": 8, "benchmark": "bert_pretraining", "precision": "fp16",
        "batch": 416, "metrics": {"sequences_per_second": {"value": 227, "unit": "sequences/s"}},
        "quality": {"metric": "mlm_accuracy", "value": 0.72}, "doubt": "which sequences",
    }  # fmt: skip
    content = {
        "schema_version": 1, "kind": "published",
        "source": {"title": "a table", "url": "https://x", "date": "2022"}, "rows": [row, row],
    } | changed  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_published_figures_are_results_of_another_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    published(tmp_path / "reference" / "more" / "table.json")
    (tmp_path / "1x-card" / "calibration.json").write_text("{}")
    (first, one, two), damaged = load_results([tmp_path])
    assert not damaged and first.path == run
    assert (one.kind, one.run_id, two.run_id) == ("published", "table-1", "table-2")
    assert (one.status, one.created, one.num_devices) == ("published", "2022", 8)
    assert (one.world_size, one.seed, one.recipe_hash) == (None, None, None)
    assert one.metrics["sequences_per_second"]["direction"] == "higher"
    assert one.title == "bert_pretraining, fp16, BI-V100" and one.global_batch == 416
    assert list(one.steps()) == []
    assert load_results([tmp_path], references=False) == ([first], [])


def test_this_repositorys_references_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = published(tmp_path / "repository" / "reference" / "table.json").parent
    monkeypatch.setattr(store, "REFERENCE", here)
    make_run(tmp_path / "mine")
    for paths in ([tmp_path / "mine"], [tmp_path / "mine", here]):
        assert [r.kind for r in load_results(paths)[0]] == ["run", "published", "published"]


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "run"}, {"source": None}, {"rows": {}}, {"rows": [1]}, {"rows": [{}]},
        {"rows": [{"system": "a", "benchmark": "b", "metrics": {"x": 5}}]},
    ],
)  # fmt: skip
def test_a_broken_published_file_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert problem(published(tmp_path / "table.json", **changed))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def use(result: Result) -> None:
    """Everything that a report would ask for, written as a report would be."""
    names = [name for name in vars(Result) if isinstance(vars(Result)[name], property)]
    told = [getattr(result, name) for name in names]
    json.dumps([result.metrics, [str(v) for v in told]], allow_nan=False).encode("utf-8")
    str(told).encode("utf-8")
    list(result.steps()), list(result.telemetry())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(
        ["run_id", "system", "preset", "status", "seed", "world_size", "simulated", "quality",
         "metrics", "extras", "inputs", "files", "recipe_hash", "created_utc", "global_batch"]
    ),
    value=JSON,
    where=st.sampled_from(["manifest.json", "config.json", "system.json"]),
)  # fmt: skip
def test_a_strangers_value_anywhere_is_loaded_or_named(
    tmp_path_factory: Any, key: str, value: Any, where: str
) -> None:
    folder = make_run(tmp_path_factory.mktemp("any"), status="interrupted", finished=False)
    content = json.loads((folder / where).read_text())
    if where == "system.json":
        content["devices"][0][key] = value
    elif where == "config.json":
        content["run"] = value
    else:
        content[key] = value
    (folder / where).write_text(json.dumps(content))
    results, damaged = load_results([folder])
    assert len(results) + len(damaged) == 1
    for result in results:
        use(result)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["manifest.json", "config.json", "steps.jsonl"]))
def test_bytes_cut_or_changed_anywhere_are_loaded_or_named(
    tmp_path_factory: Any, data: st.DataObject, name: str
) -> None:
    lines = '{"kind": "step", "loss": 1.5}\n' * 3
    folder = make_run(
        tmp_path_factory.mktemp("cut"), status="interrupted", lines=lines, finished=False
    )
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place:]
    (folder / name).write_bytes(content)
    results, damaged = load_results([folder])
    assert len(results) + len(damaged) == 1
    for result in results:
        use(result)


@given(st.text())
def test_parse_gives_json_or_refuses(text: str) -> None:
    try:
        value = parse(text)
    except ValueError:
        return
    json.dumps(value, allow_nan=False).encode("utf-8")


def finished(root: Path, **changed: Any) -> Path:
    """A run with lines of steps and of telemetry, sealed."""
    lines = "".join(
        json.dumps({"kind": "step", "step": n, "loss": 1.5, "sequences_per_second": 10.0 + n})
        + "\n"
        for n in range(5)
    )
    folder = make_run(root, {"power_w": 1.0}, lines=lines, **changed)
    (folder / "telemetry.jsonl").write_text('{"t": 1.0, "power_w": 50.0}\n' * 3)
    seal(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["manifest.json", "config.json", "system.json", "steps.jsonl", "telemetry.jsonl",
             "console.log"],
)  # fmt: skip
def test_a_changed_byte_of_any_file_is_damage_to_every_verb(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    whole = (folder / name).read_bytes()
    place = max(whole.rfind(b"1"), 1)  # a digit, where there is one: still JSON
    (folder / name).write_bytes(whole[:place] + b"7" + whole[place + 1 :])
    assert problem(folder) == f"{name} differs from its checksum"
    assert main(["report", str(folder), "--out", str(tmp_path / "r"), "--no_references"]) == 0
    assert "damaged" in capsys.readouterr().out
    assert main(["compare", str(folder), str(folder)]) == 2
    if name in ("manifest.json", "steps.jsonl"):
        assert main(["watch", "--once", str(folder)]) == 1
        assert "damaged" in capsys.readouterr().out


def test_what_changes_after_it_was_loaded_is_not_shown(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    run = only(folder)
    assert len(list(run.steps())) == 5 and len(list(run.telemetry())) == 3
    (folder / "steps.jsonl").write_text((folder / "steps.jsonl").read_text().replace("1.5", "9.5"))
    with pytest.raises(BadInput, match=r"steps.jsonl differs from its checksum"):
        list(run.steps())


@pytest.mark.parametrize("name", ["steps.jsonl", "telemetry.jsonl"])
def test_lines_without_a_checksum_are_not_shown(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={k: v for k, v in files.items() if k != name})
    assert problem(folder) == f"{name} is not in the manifest's list of files"


@pytest.mark.parametrize("kind", ["fifo", "device", "link", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "steps.jsonl", "extra"])
def test_what_is_no_file_stops_no_verb(
    tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else "/etc/hostname")
    out = str(tmp_path / "r")
    assert main(["validate", str(tmp_path)]) == 1
    assert "NOT VALID" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--out", out, "--no_references"]) == 0
    main(["compare", str(tmp_path), str(tmp_path)])
    main(["watch", "--once", str(tmp_path)])


HOSTILE = {
    "deep": "[" * 100_000,
    "deep within": '{"a": ' * 500 + "1" + "}" * 500,
    "digits": '{"a": ' + "9" * 5000 + "}",
    "power": '{"a": 1' + "0" * 400 + "}",
    "exponent": '{"a": 1e999}',
    "infinity": '{"a": Infinity}',
    "one line": "x" * (1 << 20),
    "nothing": "",
    "zeros": "\0" * 100,
    "no text": "\udcff\udcfe",
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "system.json", "steps.jsonl",
                                  "telemetry.jsonl", "reference/x.json"])  # fmt: skip
def test_hostile_json_is_one_line(
    tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    content = HOSTILE[text].encode("utf-8", "surrogateescape")
    if name == "reference/x.json":
        (tmp_path / "reference").mkdir()
        (tmp_path / name).write_bytes(content)
    else:
        (folder / name).write_bytes(content)
        if name != "manifest.json":
            seal(folder)
    for words in (
        ["validate", str(tmp_path)], ["watch", "--once", str(tmp_path)],
        ["compare", str(tmp_path), str(tmp_path)],
        ["report", str(tmp_path), "--out", str(tmp_path / "r")],
    ):  # fmt: skip
        assert main(words) in (0, 1, 2)
        said = capsys.readouterr()
        assert max(map(len, (said.out + said.err).splitlines())) < 600
    (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [{}, [], 5, None, True, "", "\u202ename\x1b[2J\nx"])
@pytest.mark.parametrize("key", ["name", "backend", "driver", "memory_bytes", "index", "extras"])
def test_a_device_of_any_description_hides_no_other_run(
    tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a", {"sequences_per_second": 1.0}, preset="good")
    make_run(tmp_path / "b", {"sequences_per_second": 1.0}, devices=[device() | {key: value}])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r"), "--no_references"]) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / "r" / name).read_text()
        assert "good" in text and "\u202e" not in text and "\x1b" not in text
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    main(["validate", str(tmp_path)])
