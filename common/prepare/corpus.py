# SPDX-License-Identifier: Apache-2.0
"""Read text as a stream of documents, each a list of sentences.

Two layouts are recognised by the first line that is not blank:

* plain: one sentence a line, a blank line between documents (MLPerf's own layout);
* WikiExtractor: ``<doc id= url= title=>`` ... ``</doc>``, a paragraph a line. The line that repeats
  the title is dropped, and paragraphs are split by :func:`split_sentences`.

Files may be plain, .gz, .bz2 or .xz, or a tar of such files, or a folder of them. Only one document
is in memory at a time.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import html
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from bertbench.common.errors import BadInput

# fmt: off
ABBREVIATIONS = frozenset((
    "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Rev.", "Gen.", "Col.", "Capt.", "Lt.", "Sgt.", "Sen.",
    "Gov.", "St.", "Mt.", "Jr.", "Sr.", "No.", "vs.", "etc.", "ca.", "cf.", "approx.", "Inc.",
    "Ltd.", "Co.", "Corp.", "Jan.", "Feb.", "Mar.", "Apr.", "Aug.", "Sept.", "Oct.", "Nov.", "Dec.",
    "Vol.", "pp.", "fl.", "op.",
))
# fmt: on
_OPEN = "\"'(\\[\u201c\u2018\u00ab"
_CLOSE = "\"')\\]\u201d\u2019\u00bb"
_BREAK = re.compile(rf"[.!?][{_CLOSE}]*(\s+)(?=[{_OPEN}]*[^\W_a-z])")
_LETTERS = re.compile(r"(?:[^\W\d_]\.)+")
_DOC = re.compile(r'<doc id="([^"]*)" url="[^"]*" title="(.*)">')
_OPENERS: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_UNREADABLE = (tarfile.TarError, lzma.LZMAError, EOFError, zlib.error, OSError)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One article."""

    key: str
    """Its id and title where the source names them, else empty."""
    sentences: list[str]
    """At least one; none is empty and none holds a line break."""

    def identity(self) -> int:
        """Return 64 bits that do not depend on the file: sha256 of key, else of text."""
        text = self.key or "\n".join(self.sentences)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences, by one rule and no model.

    A sentence ends at ``.``, ``!`` or ``?`` (with closing quotes or brackets) before white space
    and anything that is not a lower-case ASCII letter, unless the word there is one of
    ABBREVIATIONS or only letters with dots (``J.``, ``U.S.``).
    """
    sentences, start = [], 0
    for match in _BREAK.finditer(paragraph):
        begin = max(start, paragraph.rfind(" ", start, match.start()) + 1)
        word = paragraph[begin : match.start() + 1].lstrip("\"'([\u201c\u2018\u00ab")
        if word in ABBREVIATIONS or _LETTERS.fullmatch(word):
            continue
        sentences.append(paragraph[start : match.start(1)].strip())
        start = match.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def input_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files behind ``paths``, folders searched to any depth, each in sorted order.

    Raises BadInput for an absent path, a folder without files, or a .zst file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
            if not inside:
                raise BadInput(f"{path} holds no file: name a folder or file with text")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise BadInput(f"{path} does not exist: name a text file, an archive or a folder")
    for path in found:
        if path.suffix == ".zst":
            raise BadInput(
                f"{path} is zstd-compressed, which Python's library does not read before 3.14: "
                f"unpack it (tar --zstd -xf {path.name}, or zstd -d {path.name}) and name the "
                f"folder or file that comes out"
            )
    return found


def documents(path: Path) -> Iterator[Document]:
    """Yield the documents of one of :func:`input_files`, in order."""
    for name, lines in _texts(path):
        reader = _lines(name, lines)
        first = next((line for line in reader if line), None)
        if first is None:
            continue
        layout = _wiki if first.startswith("<doc ") else _plain
        yield from layout(name, first, reader)


def _texts(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (name, binary stream) of the file itself, or of each file within an archive."""
    try:
        if path.name.endswith(_TAR):
            # "r|*" streams members in archive order, without unpacking to disk.
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    inside = archive.extractfile(member) if member.isfile() else None
                    if inside is not None:
                        yield f"{path}:{member.name}", inside
            return
        opener = _OPENERS.get(path.suffix, open)
        with opener(path, "rb") as file:
            yield str(path), file
    except _UNREADABLE as error:
        raise BadInput(f"{path} cannot be read: {error}. Fetch or pack it again") from error


def _lines(name: str, stream: IO[bytes]) -> Iterator[str]:
    """Yield stripped lines; raise BadInput for a line that is not UTF-8."""
    number = 0
    try:
        for raw in io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20):
            number += 1
            yield raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        message = f"{name}, line {number}: not UTF-8 ({error.reason}): convert it with iconv"
        raise BadInput(message) from error
    except _UNREADABLE as error:
        message = f"{name} cannot be read after line {number}: {error}. Fetch or pack it again"
        raise BadInput(message) from error


def _plain(name: str, first: str, reader: Iterable[str]) -> Iterator[Document]:
    sentences = [first]
    for line in reader:
        if line:
            sentences.append(line)
        elif sentences:
            yield Document(key="", sentences=sentences)
            sentences = []
    if sentences:
        yield Document(key="", sentences=sentences)


def _wiki(name: str, first: str, reader: Iterator[str]) -> Iterator[Document]:
    head: str | None = first
    while head is not None:
        match = _DOC.fullmatch(head)
        if not match:
            raise BadInput(
                f'{name}: expected a <doc id="..." url="..." title="..."> line, found '
                f"{head[:60]!r}: run WikiExtractor again without --json"
            )
        key, title = "\t".join(match.groups()), html.unescape(match.group(2))
        sentences: list[str] = []
        at_title = True
        for line in reader:
            if line == "</doc>":
                break
            if line and not (at_title and line == title):
                sentences += split_sentences(line)
            at_title = at_title and not line
        else:
            raise BadInput(f"{name}: the document {title!r} has no </doc>: the file is cut short")
        if sentences:
            yield Document(key=key, sentences=sentences)
        head = next((line for line in reader if line), None)
