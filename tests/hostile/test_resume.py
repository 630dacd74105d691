# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that a run cannot have written is refused in one line, before it is used.

Its checksums are right: whoever can write a checkpoint can also sum it up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.distributed.sharding import Shards
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from bertbench.common.training import checkpoint
from bertbench.common.training.checkpoint import Checkpoints, load, rank_group, verify
from bertbench.common.training.progress import Progress, load_run, restore
from bertbench.common.training.resume import find_checkpoint

BATCH, STEPS = 8, 6


class Run:
    """Three steps of a model on one rank, and what ``restore`` needs to go on."""

    mask_now = staticmethod(lambda: None)

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        self.backend = CpuRef()
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        self.optimizer = build_optimizer(optimizer, parameter_groups(self.model, 0.01), lr=0.1)
        self.shards = Shards(self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", enabled=True)

    def save(self, folder: Path) -> Path:
        for _ in range(3):
            self.model(torch.randn(2, 4)).square().sum().backward()
            self.optimizer.step()
        tensors, values = checkpoint.flatten_optimizer(self.optimizer)
        groups = {"model": self.model.state_dict(), "optimizer": tensors}
        progress: dict[str, Any] = dict.fromkeys(Progress.__slots__, 0)
        progress |= {"step": 3, "samples": 3 * BATCH, "position": {"epoch": 0, "index": 24}}
        return Checkpoints(folder).save(
            3,
            groups | {rank_group(0): self.backend.rng_state()},
            {
                "progress": progress, "scaler": self.scaler.state_dict(), "optimizer": values,
                "world_size": 1,
            },
        )  # fmt: skip

    def resume(self, path: Path) -> Progress:
        class Plan:
            max_steps = STEPS

        progress = Progress()
        saved = load_run(path, Plan(), BATCH)  # type: ignore[arg-type]
        restore(self, self.scaler, self.backend, World(), saved, progress)  # type: ignore[arg-type]
        return progress


@pytest.fixture(scope="module", params=["lamb", "adamw", "bert_adam"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / request.param
    return Run(request.param).save(folder)


@pytest.fixture
def step(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / written.parent.name / written.name))


def run_of(step: Path) -> Run:
    return Run(step.parent.name)


def sum_up(step: Path, number: int = 3) -> None:
    """Write the manifest that belongs to the files."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": checkpoint.file_sha256(file)}
        for file in step.iterdir()
        if file.name != "manifest.json"
    }
    (step / "manifest.json").write_bytes(checkpoint._manifest(number, files))


def refused(step: Path, message: str) -> None:
    sum_up(step)
    with pytest.raises(BadInput, match=message) as caught:
        run_of(step).resume(step)
    assert "\n" not in str(caught.value)


def test_a_whole_one_goes_on(step: Path) -> None:
    sum_up(step)
    run = run_of(step)
    progress = run.resume(step)
    assert (progress.step, progress.samples) == (3, 24)
    run.model(torch.randn(2, 4)).sum().backward()
    run.optimizer.step()


def at(*keys: Any) -> Callable[[Any, Any], None]:
    def change(state: Any, value: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        if value is KeyError:
            del state[keys[-1]]
        else:
            state[keys[-1]] = value

    return change


STEP, GROUP = at("progress", "step"), ("optimizer", "param_groups", 0)


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        (at("world_size"), "1", "world_size is '1', not a whole number"),
        (at("world_size"), [1], "world_size"),
        (at("world_size"), KeyError, "lacks world_size"),
        (at("world_size"), True, "world_size is True"),
        (at("world_size"), 2, "world_size is 2 and it has 1"),
        (at("world_size"), 0, "world_size"),
        (at("world_size"), 10**400, "too large"),
        (STEP, 10**18, "step is 1000000000000000000, not a whole number"),
        (STEP, 4, "progress is of step 4|counts 3 updates"),
        (STEP, 3.0, "step is 3.0"),
        (STEP, -3, "step is -3"),
        (STEP, None, "step is None"),
        (STEP, KeyError, "lacks step"),
        (at("progress"), None, "progress is None, not an object"),
        (at("progress"), [], "progress is"),
        (at("progress", "samples"), 2, "cannot be: 3 steps"),
        (at("progress", "samples"), 25, "beyond the recipe's 6 steps of 8"),
        (at("progress", "skipped_steps"), 4, "4 of them skipped"),
        (at("progress", "next_eval_samples"), "x", "next_eval_samples"),
        (at("progress", "position"), None, "no position"),
        (at("progress", "position"), "here", "position is here"),
        (at("progress", "position", "index"), -1, "position index is -1"),
        (at("progress", "position", "index"), 1.5, "position index is 1.5"),
        (at("scaler"), None, "scaler is None"),
        (at("scaler"), {}, "resume in the precision of that run"),
        (at("scaler", "scale"), "big", "scaler's scale is 'big'"),
        (at("scaler", "scale"), -1.0, "scaler's scale is -1.0"),
        (at("scaler", "scale"), 0, "scaler's scale is 0"),
        (at("optimizer"), KeyError, "lacks optimizer"),
        (at("optimizer", "state"), [], "optimizer's state is"),
        (at("optimizer", "state", "0"), KeyError, "unknown tensor state.0"),
        (at("optimizer", "state", "0"), {"exp_avg": 1.0}, "no tensor for"),
        (at("optimizer", "state", "99"), {}, "state of 99"),
        (at("optimizer", "state", "-1"), {}, "state of -1"),
        (at("optimizer", "param_groups"), {}, "param_groups is None"),
        (at("optimizer", "param_groups"), [], "groups of"),
        (at(*GROUP, "params"), [0, 1], "groups of"),
        (at(*GROUP, "params"), "01", "parameters 01"),
        (at(*GROUP, "segments"), [2], "has segments .2., this run's .1."),
        (at(*GROUP, "eps"), 1.0, "has eps 1.0, this run's 1e-06"),
        (at(*GROUP, "betas"), [0.9, 2.0], "has betas"),
        (at(*GROUP, "weight_decay"), "none", "has weight_decay none"),
        (at(*GROUP, "lr"), "fast", "lr is 'fast'"),
        (at(*GROUP, "step"), 10**12, "updates and its run 3 steps"),
        (at(*GROUP, "updates"), -1, "updates is -1"),
    ],
)
def test_a_state_that_no_run_can_have(
    step: Path, change: Callable[[Any, Any], None], value: Any, message: str
) -> None:
    file = step / "state.json"
    state = json.loads(file.read_text())
    change(state, value)
    file.write_text(json.dumps(state))
    refused(step, message)


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"step": NaN}', "\xff", ""])
def test_a_state_that_is_no_state(step: Path, text: str) -> None:
    (step / "state.json").write_text(text, encoding="latin-1")
    refused(step, "checkpoint|state.json")


def edited(step: Path, group: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = step / f"{group}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt", "aliases": "{}"})


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = make(tensors.get(name, torch.zeros(4)))

    return change


def with_(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.clone().index_fill_(0, torch.tensor([0]), value)


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("optimizer", put("state.0.exp_avg", lambda t: torch.zeros(1)), "float32 .1., this run's"),
        ("optimizer", put("state.1.exp_avg_sq", lambda t: torch.zeros(9999)), "9999"),
        ("optimizer", put("state.0.exp_avg", torch.Tensor.double), "float64"),
        ("optimizer", put("state.0.exp_avg", with_(float("nan"))), "NaN or infinity"),
        ("optimizer", put("state.0.exp_avg_sq", with_(float("inf"))), "NaN or infinity"),
        ("optimizer", put("state.0.exp_avg_sq", with_(-1.0)), "negative squares of 0"),
        ("optimizer", lambda t: t.pop("state.0.exp_avg"), "lacks 1 tensors, such as exp_avg"),
        ("optimizer", put("state.0.more", torch.clone), "also has 1 tensors, such as more"),
        ("optimizer", put("state.77.exp_avg", torch.clone), "unknown tensor state.77"),
        ("optimizer", put("param_groups.0.lr", torch.clone), "unknown tensor param_groups"),
        ("optimizer", put("x", torch.clone), "unknown tensor x"),
        ("model", put("0.weight", lambda t: t[:2].clone()), "0.weight is float32 .2, 4."),
        ("model", put("0.weight", torch.Tensor.bfloat16), "0.weight is bfloat16"),
        ("model", put("0.weight", with_(float("nan"))), "0.weight holds NaN"),
        ("model", lambda t: t.pop("0.bias"), "model lacks 1 tensors, such as 0.bias"),
        ("model", put("9.bias", torch.clone), "model also has 1"),
        ("rank_0000", put("cpu", lambda t: t[:9].clone()), "random state: cpu is uint8 .9."),
        ("rank_0000", put("cpu", torch.Tensor.int), "random state: cpu is int32"),
        ("rank_0000", lambda t: t.pop("cpu"), "random state lacks"),
    ],
)
def test_tensors_of_another_run(
    step: Path, group: str, change: Callable[[Any], Any], message: str
) -> None:
    edited(step, group, change)
    refused(step, message)


def test_a_step_of_adam_that_was_not_taken(step: Path) -> None:
    if "state.0.step" in load_file(step / "optimizer.safetensors"):
        edited(step, "optimizer", put("state.0.step", lambda t: torch.tensor(1e9)))
        refused(step, "counts 1e[+]09 updates and its run 3 steps")


def packed(header: Any, body: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        packed(b"", length=1 << 60),
        packed(b"[" * 9),
        packed({"x": TENSOR | {"data_offsets": [0, 1 << 62]}}),
        packed({"x": TENSOR, "y": TENSOR}),
        packed({"x": TENSOR | {"shape": [1 << 40, 1 << 40]}}),
        packed({"x": TENSOR | {"shape": [-4]}}),
        packed({"x": TENSOR, "__metadata__": {"aliases": "[" * 9000}}, b"\0" * 16),
        packed({"x": TENSOR, "__metadata__": {"aliases": '{"y": "z"}'}}, b"\0" * 16),
        packed({"x": TENSOR, "__metadata__": {"aliases": '{"y": []}'}}, b"\0" * 16),
        packed({"x": TENSOR, "__metadata__": {"aliases": "[1]"}}, b"\0" * 16),
    ],
)
def test_a_tensor_file_that_is_none(step: Path, content: bytes) -> None:
    (step / "model.safetensors").write_bytes(content)
    refused(step, r"model\.safetensors: .*Nothing was loaded")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "rank_0000.safetensors"]
)
def test_a_group_that_is_missing(step: Path, name: str) -> None:
    (step / name).unlink()
    refused(step, "world_size is 1 and it has")


# -- the manifest -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero", "/etc/passwd", "../outside.safetensors", "a/b.safetensors", "x\0.safetensors",
        "..", "", "state.json/", "STATE.JSON", "\u202estate.json", "manifest.json", "a" * 5000,
    ],
)  # fmt: skip
def test_a_manifest_that_lists_other_files(step: Path, name: str) -> None:
    content = json.loads((step / "manifest.json").read_text())
    content["files"][name] = {"bytes": 0, "sha256": "0" * 64}
    (step / "manifest.json").write_bytes(checkpoint._manifest(3, content["files"]))
    assert (
        verify(step) == f"{step / 'manifest.json'}: damaged, or written by an incompatible version"
    )


@pytest.mark.parametrize("kind", ["fifo", "link", "zero", "folder", "dangling"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_file_that_is_not_plain(step: Path, name: str, kind: str) -> None:
    file = step / name
    content = file.read_bytes()
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        (step.parent / "elsewhere").write_bytes(content)
        to = {"link": step.parent / "elsewhere", "zero": Path("/dev/zero")}
        file.symlink_to(to.get(kind, step.parent / "nowhere"))
    if name == "manifest.json" and kind == "link":
        return
    problem = verify(step)
    assert problem is not None and str(file) in problem
    with pytest.raises(BadInput, match="Nothing was loaded"):
        load(step)


@pytest.mark.parametrize(
    "entry", [None, 5, [], {}, {"bytes": "0"}, {"bytes": 1e400, "sha256": None}], ids=repr
)
def test_a_manifest_of_other_types(step: Path, entry: Any) -> None:
    content = json.loads((step / "manifest.json").read_text())
    content["files"]["model.safetensors"] = entry
    (step / "manifest.json").write_bytes(checkpoint._manifest(3, content["files"]))
    assert verify(step) is not None


@pytest.mark.parametrize(
    "text", ["[]", "[" * 100_000, "1" * 5000, '{"files": [], "step": 3}', "\0"]
)
def test_a_manifest_that_is_none(step: Path, text: str) -> None:
    (step / "manifest.json").write_text(text)
    assert "damaged" in (verify(step) or "")


def test_a_manifest_of_another_step(step: Path) -> None:
    sum_up(step, number=4)
    assert "damaged" in (verify(step) or "")


# -- where --resume looks -----------------------------------------------------------------------
class Asked:
    """The settings that ``find_checkpoint`` reads."""

    class preset:
        name, benchmark = "mini", "bert_pretraining"

    def __init__(self, root: Path, resume: str) -> None:
        self.run = type("Options", (), {"resume": resume, "output_dir": root})

    def as_dict(self) -> dict[str, Any]:
        return {"recipe": {"global_batch": 8}, "run": {"seed": 1}}


def record(root: Path, name: str, config: str | None) -> Path:
    folder = root / "system" / "bert_pretraining" / name
    (folder / "checkpoints" / "step_00000003").mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


GOOD = json.dumps({"preset": "mini", "recipe": {"global_batch": 8}, "run": {"seed": 1}})


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "{",
        "[]",
        "[" * 9000,
        '{"preset": "mini"}',
        '{"preset": [], "recipe": 1, "run": 2}',
    ],
)
def test_last_passes_over_what_cannot_be_read(
    tmp_path: Path, config: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    good = record(tmp_path, "20260102", GOOD)
    record(tmp_path, "20260101", config)
    found = good / "checkpoints" / "step_00000003"
    assert find_checkpoint(Asked(tmp_path, "last")) == found  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    newer = record(tmp_path, "20260103", config)
    assert find_checkpoint(Asked(tmp_path, "last")) == found  # type: ignore[arg-type]
    (note,) = capsys.readouterr().err.splitlines()
    assert str(newer / "config.json") in note
    with pytest.raises(BadInput, match="recipe is unknown"):
        find_checkpoint(Asked(tmp_path, str(newer)))  # type: ignore[arg-type]


def test_a_configuration_that_was_changed_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path, "20260102", GOOD)
    seal = {"bytes": len(GOOD), "sha256": hashlib.sha256(GOOD.encode()).hexdigest()}
    asked = Asked(tmp_path, str(folder))
    for files in (None, {"config.json": seal}):
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        assert find_checkpoint(asked)  # type: ignore[arg-type]
    (folder / "config.json").write_text(GOOD.replace("8", "9"))
    with pytest.raises(BadInput, match="differs from its checksum"):
        find_checkpoint(asked)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no checkpoint of mini"):
        find_checkpoint(Asked(tmp_path, "last"))  # type: ignore[arg-type]
    assert "passes over" in capsys.readouterr().err


def test_last_sees_a_checkpoint_that_was_being_replaced(tmp_path: Path) -> None:
    """Killed between the two renames, a run has its newest one under another name only."""
    folder = record(tmp_path, "20260102", GOOD) / "checkpoints"
    asked = Asked(tmp_path, "last")
    replaced = folder / "step_00000004.replaced"
    replaced.mkdir()
    (folder / "step_00000009").touch()  # no folder
    assert find_checkpoint(asked) == replaced  # type: ignore[arg-type]
    (folder / "step_00000004").mkdir()
    assert find_checkpoint(asked) == folder / "step_00000004"  # type: ignore[arg-type]
    (folder / ".partial-x").mkdir()
    assert find_checkpoint(asked) == folder / "step_00000004"  # type: ignore[arg-type]


def test_a_record_a_folder_of_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    good = record(tmp_path, "20260102", GOOD)
    found = good / "checkpoints" / "step_00000003"
    for target in (good, good / "checkpoints", found):
        assert find_checkpoint(Asked(tmp_path, str(target))) == found  # type: ignore[arg-type]
    for target in (tmp_path, good / "config.json", tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="no checkpoint in"):
            find_checkpoint(Asked(tmp_path, str(target)))  # type: ignore[arg-type]
