# SPDX-License-Identifier: Apache-2.0
"""GLUE files that tests make up, and five real lines of each; skipped where these are absent."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from glue_files import TOKENS

SHARED = Path(__file__).parents[4] / "shared" / "data" / "glue"


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(TOKENS) + "\n")
    return path


@pytest.fixture(scope="session")
def five_lines(tmp_path_factory) -> Path:
    """A folder with GLUE's layout, of real lines, as huggingface/datasets tests itself with."""
    archive = SHARED / "glue-five-line-samples.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not on this machine (looked for {SHARED})")
    root = tmp_path_factory.mktemp("glue_data")
    with tarfile.open(archive) as files:
        zips = [member for member in files if member.name.endswith(".zip")]
        for member in zips:
            content = files.extractfile(member)
            assert content is not None
            with zipfile.ZipFile(io.BytesIO(content.read())) as inner:
                for name in (n for n in inner.namelist() if not n.endswith("/")):
                    # STS-B's folder is misspelt there; MRPC's files are named as their downloads.
                    place = root.joinpath(*Path(name.replace("SST-B", "STS-B")).parts[1:])
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(inner.read(name))
    mrpc = root / "MRPC"
    for name in ("train", "test"):
        text = (mrpc / name).read_text()
        # Three letters stand there for the three bytes of the real files' byte order mark.
        real = b"\xef\xbb\xbf" + text.removeprefix("BOM").encode()
        (mrpc / f"msr_paraphrase_{name}.txt").write_bytes(real)
    (mrpc / "dev_ids").rename(mrpc / "dev_ids.tsv")
    return root
