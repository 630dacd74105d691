# SPDX-License-Identifier: Apache-2.0
"""Which files a run uses, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertbench.benchmarks import resolve
from bertbench.benchmarks.bert_pretraining.data import find_source
from bertbench.common.errors import BadInput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the names of MLPerf's data set; find_source reads no sample."""
    for name in ("2048_shards_uncompressed/part_0_of_2048.hdf5", "eval_set_uncompressed/part_eval"):
        file = tmp_path / name
        file.parent.mkdir()
        file.touch()
    return tmp_path


def test_mlperfs_recipes_never_start_from_random_weights_unasked(root: Path) -> None:
    asked = ["--data", str(root)]
    with pytest.raises(BadInput, match="--init_checkpoint PATH"):
        find_source(resolve("deepspark_416", asked))
    unasked = resolve("deepspark_416", [*asked, "--initial_mlm_accuracy", "None"])
    assert find_source(unasked).init_checkpoint is None


@pytest.mark.parametrize("name", ["model.ckpt-28252.apex.pt", "model.ckpt-28252.pt"])
def test_the_checkpoint_is_found_beside_the_data(root: Path, name: str) -> None:
    (root / name).touch()
    asked = ["--data", str(root)]
    assert find_source(resolve("deepspark_416", asked)).init_checkpoint == root / name
    mine = root / "mine.pt"
    named = resolve("deepspark_416", [*asked, "--init_checkpoint", str(mine)])
    with pytest.raises(BadInput, match=r"mine\.pt: does not exist"):
        find_source(named)
    mine.touch()
    assert find_source(named).init_checkpoint == mine
    assert find_source(resolve("base", asked)).init_checkpoint is None
