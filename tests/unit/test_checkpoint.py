# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit, and a damaged one is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bertbench.common.errors import BadInput
from bertbench.common.training import checkpoint
from bertbench.common.training.checkpoint import (
    Checkpoints,
    flatten_optimizer,
    rank_group,
    restore_optimizer,
)

GROUPS = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)},
    rank_group(3): {"cpu": torch.arange(9, dtype=torch.uint8)},
}


def save(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, GROUPS, {"step": step, "data": {"epoch": 1}, "scale": 0.1 + 0.2})
    return checkpoints


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 7)
    groups, state = checkpoints.load()
    assert state == {"step": 7, "data": {"epoch": 1}, "scale": 0.1 + 0.2}
    assert set(groups) == {"model", "rank_0003"}
    for group, named in GROUPS.items():
        for name, tensor in named.items():
            assert groups[group][name].dtype == tensor.dtype
            assert torch.equal(groups[group][name], tensor)


def test_keeps_the_last_ones(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 5, 100_000_000, 20, keep=2)
    assert [p.name for p in checkpoints.available()] == ["step_00000020", "step_100000000"]
    assert checkpoints.latest() == tmp_path / "step_100000000"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000020", "step_100000000"]


def test_the_same_step_again_replaces_the_old_one(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 4, 8)
    checkpoints.save(8, {"model": {"w": torch.zeros(1)}}, {"again": True})
    assert [p.name for p in checkpoints.available()] == ["step_00000004", "step_00000008"]
    assert checkpoints.load()[1] == {"again": True}


def test_a_crash_while_replacing_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 8, keep=1)
    (tmp_path / "step_00000008").rename(tmp_path / "step_00000008.replaced")
    assert checkpoints.load()[1]["step"] == 8
    save(tmp_path, 8, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000008"]


def test_shared_and_overlapping_tensors(tmp_path: Path) -> None:
    table, flat = torch.randn(4, 2), torch.arange(10.0)
    named = {
        "embedding": table,
        "decoder": table,
        "flat": flat,
        "part": flat[2:6],
        "square": table.view(2, 4),
        "transposed": table.t(),
        "empty": torch.empty(0),
        "empty2": torch.empty(0),
        "scalar": torch.tensor(3),
    }
    checkpoints = Checkpoints(tmp_path)
    size = (checkpoints.save(1, {"model": named}, {}) / "model.safetensors").stat().st_size
    loaded = checkpoints.load()[0]["model"]
    assert loaded["embedding"] is loaded["decoder"]
    assert set(loaded) == set(named)
    for name, tensor in named.items():
        assert torch.equal(loaded[name], tensor)
    loaded["part"][0] = -1.0
    assert loaded["flat"][2] == 2.0
    assert size < 2000


@pytest.mark.parametrize(
    "file", ["model.safetensors", "rank_0003.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_damage_is_found_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: str
) -> None:
    checkpoints = save(tmp_path, 1, 2)
    victim = tmp_path / "step_00000002" / file
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    elif damage == "cut":
        del data[-1:]
    else:
        data += b" "
    victim.unlink() if damage == "remove" else victim.write_bytes(data)
    monkeypatch.setattr(checkpoint, "_read_group", lambda file: pytest.fail(f"{file} was read"))
    with pytest.raises(BadInput) as caught:
        checkpoints.load()
    assert str(victim) in str(caught.value)
    assert f"--resume {tmp_path / 'step_00000001'}" in str(caught.value)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = tmp_path / "step_00000001" / "manifest.json"
    good = manifest.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 4
        manifest.write_bytes(bad)
        assert checkpoint.verify(manifest.parent) is not None, position
    manifest.write_bytes(good)
    assert checkpoint.verify(manifest.parent) is None


def test_the_offer_skips_damaged_ones(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, 3, keep=3)
    for step in (2, 3):
        (tmp_path / f"step_0000000{step}" / "state.json").unlink()
    with pytest.raises(BadInput, match=r"--resume .*step_00000001"):
        checkpoints.load()
    (tmp_path / "step_00000001" / "state.json").unlink()
    with pytest.raises(BadInput, match="start without --resume"):
        checkpoints.load()


def test_a_smuggled_file_is_refused(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    (tmp_path / "step_00000001" / "extra.safetensors").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"extra\.safetensors: not part"):
        checkpoints.load()


def test_resolve_accepts_checkpoint_folder_and_run(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 3, 9)
    newest = tmp_path / "checkpoints" / "step_00000009"
    for path in (tmp_path, tmp_path / "checkpoints", newest):
        assert checkpoint.resolve(path) == newest
    with pytest.raises(BadInput, match="no checkpoint in"):
        checkpoint.resolve(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="start without --resume"):
        Checkpoints(tmp_path / "nowhere").load()


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], steps: int) -> None:
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizer_continues_bit_for_bit(tmp_path: Path, kind: type) -> None:
    def fresh() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        torch.manual_seed(0)
        ps = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
        groups = [{"params": ps[:1], "weight_decay": 0.01}, {"params": ps[1:], "lr": 0.3}]
        return ps, kind(groups, lr=0.1)

    parameters, optimizer = fresh()
    train(optimizer, parameters, 2)
    tensors, values = flatten_optimizer(optimizer)
    named = {str(i): p for i, p in enumerate(parameters)}
    saved = Checkpoints(tmp_path)
    saved.save(2, {"model": named, "optimizer": tensors}, {"optimizer": values})
    random = torch.get_rng_state()
    train(optimizer, parameters, 3)

    others, again = fresh()
    groups, state = saved.load()
    with torch.no_grad():
        for i, p in enumerate(others):
            p.copy_(groups["model"][str(i)])
    restore_optimizer(again, groups.get("optimizer", {}), state["optimizer"])
    torch.set_rng_state(random)
    train(again, others, 3)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_another_model_s_optimizer_is_refused() -> None:
    small = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    large = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2)) for _ in range(3)])
    with pytest.raises(BadInput, match=r"groups of \[3\] parameters, this model's of \[1\]"):
        restore_optimizer(small, *flatten_optimizer(large))


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(2, GROUPS, {"best": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Checkpoints(tmp_path, keep=0)
