# SPDX-License-Identifier: Apache-2.0
"""Find the files of a text and read their lines, whatever they are packed in.

Compression, archives and encodings are recognised by content: gzip, bzip2, xz, tar and their
combinations; UTF-8, and UTF-16, UTF-32 or GB 18030 with a byte order mark. What a file unpacks to
is bounded, as are the length of a line and the depth of packing.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.prepare.foreign import refuse_binary
from bertbench.common.prepare.tables import METADATA, is_table, records

LINE_LIMIT = 16 << 20
"""Characters of a line: a sentence, a paragraph, or a document of JSON lines."""
UNPACK_RATIO, UNPACK_FREE = 250, 100 << 20
"""A packed file may unpack to this many times its size, and in any case to this many bytes. Text
packs to a fifth."""
_DEPTH = 4
_CHUNK = 1 << 20
_HEAD = 4096
_SUFFIXES: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_PACKED = {
    rb"\x1f\x8b": _SUFFIXES[".gz"],
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": _SUFFIXES[".bz2"],
    rb"\xfd7zXZ\x00": _SUFFIXES[".xz"],
}
_UNREADABLE = (
    *(tarfile.TarError, lzma.LZMAError, EOFError, zlib.error, OSError),
    *(ValueError, OverflowError, RecursionError),  # of tarfile, for damaged headers
)
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"\x84\x31\x95\x33": "gb18030",
}


def input_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files behind ``paths``, folders searched to any depth, each in sorted order.

    Hidden files and folders are left out. Raises BadInput for an absent or unreadable path, a
    folder without files, or what is not a plain file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_inside(path))
            if not inside:
                raise BadInput(f"{shown(path)} holds no file: name a folder or file with text")
            found += inside
        else:
            found.append(path)
    for path in found:
        if not path.exists():
            raise BadInput(
                f"{shown(path)} does not exist: name a text file, an archive or a folder"
            )
        if not path.is_file():
            raise BadInput(f"{shown(path)} is not a plain file: write the text to a file first")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise BadInput(f"{shown(error.filename)} cannot be read: {error.strerror}")

    seen = set()
    for name, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        seen.add(os.path.realpath(name))
        folders[:] = [
            f for f in folders if f[0] != "." and os.path.realpath(Path(name) / f) not in seen
        ]
        if any(is_table(Path(file)) for file in files):
            files = [file for file in files if file not in METADATA]
        yield from (
            Path(name) / file
            for file in files
            if file[0] != "." and not (file == "dataset_dict.json" and folders)
        )


@dataclass(slots=True)
class Lines:
    """The stripped lines of one text, with the number of the last one read."""

    name: str
    """Printable: the file's path, and the member of an archive."""
    stream: IO[bytes]
    number: int = 0

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.name}, line {self.number}"

    def __iter__(self) -> Iterator[str]:
        """Yield the lines; raises BadInput for bytes that are not text, or for a damaged file."""
        head = self._read(_HEAD)
        encoding = next((e for mark, e in _MARKS.items() if head.startswith(mark)), "utf-8")
        if encoding == "utf-8":
            refuse_binary(self.name, head, Path(self.name).suffix)
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), True)
        rest = ""
        while True:
            try:
                text = decoder.decode(head, final=not head)
            except UnicodeDecodeError as error:
                good = error.object[: error.start]
                self.number += 1 + max(good.count(b"\n"), good.count(b"\r"))
                raise BadInput(
                    f"{self.where}: not {encoding.upper()} ({error.reason}): convert it with iconv "
                    f"(iconv -f ENCODING -t UTF-8), or copy it again"
                ) from error
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                self.number += 1
                yield self._clean(line)
            if len(rest) > LINE_LIMIT:
                self.number += 1
                raise BadInput(
                    f"{self.where} is longer than {LINE_LIMIT >> 20} Mi characters: write one "
                    f"sentence a line"
                )
            if not head:
                break
            head = self._read()
        if rest:
            self.number += 1
            yield self._clean(rest)

    def _read(self, size: int = _CHUNK) -> bytes:
        try:
            return self.stream.read(size)
        except _UNREADABLE as error:
            raise BadInput(
                f"{self.name} cannot be read after line {self.number}: {shown(error)}. Fetch or "
                f"pack it again"
            ) from error

    def _clean(self, line: str) -> str:
        if "\0" in line:
            if line.count("\0") > len(line) // 4:
                raise BadInput(f"{self.where} is of zero bytes: the file is damaged or not UTF-8")
            line = line.replace("\0", "")
        line = line.strip()
        return line.lstrip("\ufeff").strip() if line[:1] == "\ufeff" else line


def texts(path: Path) -> Iterator[Lines]:
    """Yield the text of one of :func:`input_files`, or each text within an archive.

    Raises BadInput when the file is damaged, of a format that is not read, or a bomb.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            bound = max(UNPACK_FREE, UNPACK_RATIO * size)
            name = shown(path)
            yield from _opened(name, path.name, _Stream(name, file, math.inf), bound)
    except _UNREADABLE as error:
        raise BadInput(
            f"{shown(path)} cannot be read: {shown(error)}. Fetch or pack it again"
        ) from error


def glance(path: Path) -> None:
    """Read the beginning of the first text of a file; raises what :func:`texts` raises there."""
    if is_table(path):
        next(records(path), None)
        return
    for lines in texts(path):
        next(iter(lines), None)
        break


class _Stream(io.RawIOBase):
    """A stream whose first bytes are known, and which ends with BadInput after ``most`` bytes."""

    def __init__(self, name: str, source: IO[bytes], most: float) -> None:
        self._name, self._source, self._most = name, source, most
        self._count = 0
        self.head = self._ahead = source.read(_HEAD)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._ahead[: len(buffer)] or self._source.read(len(buffer))
        self._ahead = self._ahead[len(data) :]
        self._count += len(data)
        if self._count > self._most:
            raise BadInput(
                f"{self._name} unpacks to more than {self._most / 1e6:,.0f} MB, over "
                f"{UNPACK_RATIO} times its size, which no text does: unpack it and look at it"
            )
        buffer[: len(data)] = data
        return len(data)


def _opened(
    name: str, file_name: str, stream: _Stream, bound: float, depth: int = 0
) -> Iterator[Lines]:
    """Yield the texts of a stream: its own, or those that it unpacks to."""
    if depth > _DEPTH:
        raise BadInput(f"{name} is packed more than {_DEPTH} times: unpack it and name the text")
    suffix = Path(file_name).suffix.lower()
    source = cast(IO[bytes], io.BufferedReader(stream, _CHUNK))
    opener = next((o for magic, o in _PACKED.items() if re.match(magic, stream.head)), None)
    if stream.head and suffix in (*_SUFFIXES, ".tar") and not stream.head.strip(b"\0"):
        # xz reads such bytes to the end, and to tar they are one.
        raise BadInput(f"{name} cannot be read: it begins with zero bytes. Fetch or pack it again")
    if (
        opener is not None or suffix in _SUFFIXES
    ):  # without its magic: the library says what is wrong
        with (opener or _SUFFIXES[suffix])(source, "rb") as inner:
            inside = Path(file_name).stem if suffix in _SUFFIXES else file_name
            yield from _opened(name, inside, _Stream(name, inner, bound), bound, depth + 1)
    elif suffix == ".tar" or _is_tar(stream.head):
        # "r|" streams members in archive order, without unpacking to disk.
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                within = archive.extractfile(member) if member.isfile() else None
                if within is None or any(_hidden(part) for part in member.name.split("/")):
                    continue
                place = f"{name}:{shown(member.name)}"
                inner_stream = _Stream(place, within, bound)
                yield from _opened(place, member.name, inner_stream, bound, depth + 1)
    else:
        yield Lines(name, source)


def _hidden(part: str) -> bool:
    return part.startswith(".") and bool(part.strip("."))


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except _UNREADABLE:
        return False
    return True
