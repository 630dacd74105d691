# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SparseBERT's own code as masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bertbench.common.cli.masks import main
from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.reference import read_reference


def checkpoint(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    alphas = torch.randn(12, 128, 2, generator=generator)
    alphas[:, 1, 0] = 9.0  # so that no query is without a key
    kept = torch.rand(12, 128, generator=generator) < 0.2
    kept[:, 0] = True
    i, j = np.indices((128, 128))
    mask = kept[:, abs(i - j)].float()
    model = {"bert.init_alphas": alphas, "bert.pooler.dense.bias": torch.zeros(3)}
    torch.save({"model": model, "mask": mask, "files": [1, "shard.hdf5"]}, path)
    return alphas, mask


def test_the_more_probable_outcome_is_kept(tmp_path: Path) -> None:
    alphas, sampled = checkpoint(tmp_path / "ckpt.pt")
    mask = read_reference(tmp_path / "ckpt.pt")
    assert (len(mask.layers), mask.heads, mask.longest) == (1, 12, 128)
    i, j = np.indices((128, 128))
    expected = (alphas[..., 0] > alphas[..., 1])[:, abs(i - j)].numpy()
    assert (mask.layer(5, 128) == expected).all()
    last = read_reference(tmp_path / "ckpt.pt", which="mask")
    assert (last.layer(0, 128) == sampled.bool().numpy()).all()
    with_diagonal = read_reference(tmp_path / "ckpt.pt", diagonal=True)
    expected[:, range(128), range(128)] = True
    assert (with_diagonal.layer(0, 128) == expected).all()


def test_the_verb_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, sampled = checkpoint(tmp_path / "ckpt.pt")
    words = ["--reference", str(tmp_path / "ckpt.pt"), "--sampled", "--json"]
    assert main([*words, "--save", str(tmp_path / "m.json")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["masks"]
    assert row["sparsity_ratio"] == pytest.approx(1 - float(sampled.mean()))
    assert AttentionMask.of(str(tmp_path / "m.json")).hash == row["hash"]
    for words in (["--sampled"], ["--pattern", "star", "--reference", "x.pt"]):
        with pytest.raises(BadInput, match="--reference"):
            main(words)


def test_rows_without_a_key_need_the_diagonal(tmp_path: Path) -> None:
    alphas = torch.zeros(2, 8, 2)
    alphas[:, 4, 0] = 1.0
    torch.save({"model": {"module.bert.init_alphas": alphas}}, tmp_path / "c.pt")
    with pytest.raises(BadInput, match=r"head 0, row 0.*--diagonal"):
        read_reference(tmp_path / "c.pt")
    kept = read_reference(tmp_path / "c.pt", diagonal=True)
    assert [np.flatnonzero(head).tolist() for head in kept.layers[0]] == [[0, 4], [0, 4]]


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"weight": torch.zeros(2, 2)}},
        {"model": {"init_alphas": torch.zeros(2, 8)}},
        {"model": {"init_alphas": torch.full((2, 8, 2), float("nan"))}},
        {"model": {"init_alphas": [1]}},
        {"model": [1]},
        {"model": {"init_alphas": torch.ones(2, 8, 2).to_sparse()}},
        {"model": {"init_alphas": torch.ones(2, 8, 2, dtype=torch.complex64)}},
        {"model": {"init_alphas": torch.ones(2, 8, 2, device="meta")}},
        {"model": {"init_alphas": torch.ones(2, 0, 2)}},
        {"model": {"init_alphas": torch.ones(1, 1, 1).expand(10**6, 10**6, 2)}},
        {"mask": torch.ones(2, 8, 9)},
        [1],
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pt")
    for which in ("alphas", "mask"):
        with pytest.raises(BadInput, match="not a checkpoint of SparseBERT's"):
            read_reference(tmp_path / "c.pt", which=which)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path: Path) -> None:
    alphas = torch.nested.nested_tensor([torch.ones(8, 2)] * 2)
    torch.save({"model": {"init_alphas": alphas}}, tmp_path / "c.pt")
    with pytest.raises(BadInput, match="not a checkpoint of SparseBERT's"):
        read_reference(tmp_path / "c.pt")


def test_other_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a plain file"):
        read_reference(tmp_path)
    (tmp_path / "c.pt").write_bytes(b"cut")
    with pytest.raises(BadInput, match="nothing in it was executed"):
        read_reference(tmp_path / "c.pt")
    torch.save({"model": Path("x")}, tmp_path / "c.pt")
    with pytest.raises(BadInput, match="nothing in it was executed"):
        read_reference(tmp_path / "c.pt")
