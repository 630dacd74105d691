# SPDX-License-Identifier: Apache-2.0
"""Files of unknown origin are read within bounds; files of ours are replaced whole."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from bertbench.common import files
from bertbench.common.files import (
    file_sha256,
    parse_json,
    read_bytes,
    read_json,
    shown,
    write_atomic,
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "too large"),
        ("-" + "1" * 400, "too large"),
        ("1e999", "too large"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        (b'"\xff"', "utf-8"),
    ],
)
def test_json_that_would_crash_a_reader_is_one_line(text, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_ordinary_json_is_read_exactly():
    assert parse_json('{"a": [1, -2, 1.5, 9007199254740993, null]}') == {
        "a": [1, -2, 1.5, 9007199254740993, None]
    }


def test_only_plain_files_within_a_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"1" * 11)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a plain file"):
            read_bytes(path)
        with pytest.raises(OSError, match="not a plain file"):
            file_sha256(path)
    with pytest.raises(ValueError, match="larger"):
        read_bytes(tmp_path / "large", 10)
    assert read_json(tmp_path / "large", 11) == 11111111111
    assert b"MemTotal" in read_bytes(Path("/proc/meminfo"))  # its size is said to be 0
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_a_large_limit_takes_no_room(tmp_path):
    (tmp_path / "small").write_bytes(b"1")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), before[1]))
    try:
        assert read_bytes(tmp_path / "small", 1 << 40) == b"1"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_failed_replacement_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["file"]


def test_shown_text_has_no_controls():
    assert shown("a\x1b[31m\nb\u202ec\ud800\u2066") == "a?[31m?b?c??"
