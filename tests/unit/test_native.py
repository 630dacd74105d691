# SPDX-License-Identifier: Apache-2.0
"""Builds of C files: whatever the compiler and the cache are like, a library or one line."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from bertbench.common import native
from bertbench.common.measure.system import compiler_version
from bertbench.common.native import NativeUnavailable, cache_dir

LOAD = native.load.__wrapped__
CODE = "int answer(void) { return 42; }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "FLAGS", ("-O0", "-fPIC"))
    return tmp_path / "cache" / "native"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.c"
    path.write_text(CODE)
    return path


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_build_is_kept(source: Path, cache: Path) -> None:
    assert LOAD(source, "answer").answer() == 42
    (kept,) = cache.iterdir()
    before = kept.stat().st_mtime_ns
    assert LOAD(source, "answer").answer() == 42
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("left", [0, 1, 1000, 0.5, 0.9, "flipped", "other", "folder"])
def test_a_damaged_build_is_made_again(
    source: Path, cache: Path, tmp_path: Path, left: float | str
) -> None:
    LOAD(source)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # it is mapped: a change in place would be this process's end
    if left == "other":
        other = tmp_path / "other.c"
        other.write_text("int question(void) { return 0; }\n")
        LOAD(other)
        next(cache.glob("other-*")).rename(kept)
    elif left == "flipped":
        kept.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif left == "folder":
        kept.mkdir()
        with pytest.raises(NativeUnavailable, match="cannot keep a build"):
            LOAD(source)
        return
    else:
        kept.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    assert LOAD(source, "answer").answer() == 42
    assert kept.read_bytes() == whole


def test_a_compiler_of_several_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = script(tmp_path / "my ccache", 'exec "$@"')
    monkeypatch.setenv("CC", f"{shlex.quote(str(wrapper))} gcc -DWORD=1")
    assert LOAD(source, "answer").answer() == 42


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/nowhere/gcc", "No such file"),
        ("gcc 'open", "not a command"),
        ("/", "does not start"),
        ("false", "false --version failed"),
        ("true", "has made no file; name another in CC"),
        ("gcc -fno-such-flag", "failed: .*fno-such-flag"),
        ("gcc -Danswer=renamed", "left answer out"),
    ],
)
def test_a_compiler_that_does_not_work(
    source: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(NativeUnavailable, match=reason) as caught:
        LOAD(source, "answer")
    assert "\n" not in str(caught.value)


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NativeUnavailable, match="no compiler found; install gcc"):
        LOAD(source)


@pytest.mark.parametrize("text", ["sleep 60 & sleep 60", "cat", "trap '' TERM; sleep 60"])
def test_a_compiler_that_hangs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    body = f'case "$1" in --version) echo 1;; *) {text};; esac'
    monkeypatch.setenv("CC", str(script(tmp_path / "cc", body)))
    monkeypatch.setattr(native, "COMPILER_S", 0.3)
    begin = time.monotonic()
    with pytest.raises(NativeUnavailable, match=r"takes more than|has made no file"):
        LOAD(source)
    assert time.monotonic() - begin < 5


def test_a_cache_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BERTBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(NativeUnavailable, match="set BERTBENCH_CACHE to a folder"):
        LOAD(source)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BERTBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(NativeUnavailable, match="set BERTBENCH_CACHE"):
        cache_dir()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("printf 'cc \\351 1.0\\nmore\\n'", "cc \N{REPLACEMENT CHARACTER} 1.0"),
        ("printf 'cc 1\\033[31m'", None),
        (":", None),
        ("exit 3", None),
    ],
)
def test_the_compilers_version_is_one_line_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, wanted: str | None
) -> None:
    program = script(tmp_path / "a cc", text)
    for command in (str(program), "env"):
        monkeypatch.setenv("CC", shlex.join([command, *([str(program)] * (command == "env"))]))
        found = compiler_version()
        if "033" in text:
            assert found is not None and "\033" not in found
        else:
            assert found == wanted


def test_a_compiler_of_several_words_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "nice gcc")
    several = compiler_version()
    monkeypatch.setenv("CC", "gcc")
    assert several == compiler_version() and several is not None
