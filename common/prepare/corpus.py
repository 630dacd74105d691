# SPDX-License-Identifier: Apache-2.0
"""Read text as a stream of documents, each a list of sentences.

Layouts are recognised by the first line that is not blank, tables by the name:

* plain: one sentence a line, a blank line between documents (MLPerf's own layout). Lines that end
  within a sentence, and lines of several that nobody asked to split, are refused;
* WikiExtractor: ``<doc id= url= title=>`` ... ``</doc>`` with any attributes, a paragraph a line.
  The line that repeats the title is dropped, and paragraphs are split by ``split_sentences``;
* WikiText (WikiText-2 and -103): ``= Title =`` and a paragraph a line. Its ``= = Heading = =`` is
  left out, and its ``@-@`` undone;
* JSON lines: one object a line, whose ``text`` has a paragraph a line, as WikiExtractor's
  ``--json`` and Hugging Face's exports.

* tables: the column ``text`` of Arrow and Parquet files, read as JSON lines' (tables.py).

Another format is refused by name. sources.py describes packing and encodings. Only one document is
in memory at a time.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, shown
from bertbench.common.prepare.foreign import (
    SAMPLE_CHARACTERS,
    SAMPLE_LINES,
    refuse_first_line,
    require_prose,
)
from bertbench.common.prepare.sentences import (
    Split,
    require_sentences,
    split_sentences,
)
from bertbench.common.prepare.sources import Lines, texts
from bertbench.common.prepare.tables import is_table, records

DOCUMENT_LIMIT = 64 << 20
"""Characters of a document: more is a text without marks between its documents."""
_DOC = re.compile(r"<doc(|\s.*)>")
_ATTRIBUTE = re.compile(r"""\s([\w:-]+)\s*=\s*(?:"(.*?)"(?=\s+[\w:-]+\s*=|\s*$)|'([^']*)')""")
_DOC_LINE = re.compile(r"</?doc(\s|>|$)")
_TAG = re.compile(r"</?(?!(?:unk|s|pad|mask|sep|cls|bos|eos)>)[A-Za-z][\w:.-]*(\s[^<>]*)?/?>")
_TITLE = re.compile(r"= (?!=)(.+)(?<!=) =")
_JOINED = re.compile(r" @([-,.])@ ")
_JSON = re.compile(r'\{\s*("|\}?$)')


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


def documents(path: Path, split: Split | None = None) -> Iterator[Document]:
    """Yield the documents of a text file or archive, in order.

    ``split`` makes sentences of each paragraph, and of each line of the plain layout; by default
    ``split_sentences`` does, and a line of the plain layout is a sentence. Raises BadInput for text
    that cannot be read and for other formats, naming file and line.
    """
    if is_table(path):
        yield from _checked(str(path), _table(path, split or split_sentences))
        return
    for lines in texts(path):
        reader = iter(lines)
        first = next((line for line in reader if line), None)
        if first is None:
            continue
        if first.startswith("<doc") and _DOC_LINE.match(first):
            layout = _wiki(lines, first, reader, split or split_sentences)
        elif _TITLE.fullmatch(first):
            layout = _wikitext(lines, first, reader, split or split_sentences)
        elif _JSON.match(first):
            layout = _json(lines, first, reader, split or split_sentences)
        else:
            refuse_first_line(lines.name, first)
            layout = _plain(lines, first, reader)
            look = partial(require_sentences, split=split is not None)
            for one in _checked(lines.name, layout, look):
                yield one if split is None else _split(one, split)
            continue
        yield from _checked(lines.name, layout)


def _split(plain: Document, split: Split) -> Document:
    return Document(key="", sentences=[s for line in plain.sentences for s in split(line)])


def _checked(
    name: str,
    found: Iterator[Document],
    look: Callable[[str, list[list[str]]], None] | None = None,
) -> Iterator[Document]:
    """Yield documents after a look at the sentences of the first ones, a second one by ``look``."""
    ahead: list[Document] = []
    sentences: list[str] = []
    for document in found:
        ahead.append(document)
        sentences += document.sentences
        if len(sentences) > SAMPLE_LINES or sum(map(len, sentences)) > SAMPLE_CHARACTERS:
            break
    require_prose(name, sentences[:SAMPLE_LINES])
    if look is not None:
        look(name, [document.sentences[:SAMPLE_LINES] for document in ahead])
    yield from ahead
    yield from found


def _plain(lines: Lines, first: str, reader: Iterator[str]) -> Iterator[Document]:
    sentences, size = [first], len(first)
    for line in reader:
        if line:
            if line[0] == "<" and (_DOC_LINE.match(line) or _TAG.fullmatch(line)):
                raise BadInput(
                    f"{lines.where}: {shown(line, 60)!r} in plain text: delete such lines, and "
                    f"what is before the first <doc> line if there is one"
                )
            size += len(line)
            _require_size(lines, size)
            sentences.append(line)
        elif sentences:
            yield Document(key="", sentences=sentences)
            sentences, size = [], 0
    if sentences:
        yield Document(key="", sentences=sentences)


def _wiki(lines: Lines, first: str, reader: Iterator[str], split: Split) -> Iterator[Document]:
    head: str | None = first
    while head is not None:
        fields = _attributes(head)
        if fields is None:
            raise BadInput(
                f'{lines.name}: expected a <doc id="..." url="..." title="..."> line, found '
                f"{shown(head, 60)!r} in line {lines.number}: delete what is not between "
                f"<doc ...> and </doc>"
            )
        sentences = _article(lines, fields.get("title"), reader, split)
        if sentences:
            yield Document(key=_key(fields), sentences=sentences)
        head = next((line for line in reader if line), None)


def _attributes(line: str) -> dict[str, str] | None:
    """Return the attributes of a ``<doc>`` line; None for another line."""
    match = _DOC.fullmatch(line)
    if not match or _ATTRIBUTE.sub("", match[1]).strip():
        return None
    return {name: one or other for name, one, other in _ATTRIBUTE.findall(match[1])}


def _key(fields: Mapping[str, Any]) -> str:
    """Return id and title, or the address; empty when the source names none."""
    given = [str(fields[name]) for name in ("id", "title") if fields.get(name) is not None]
    return "\t".join(given) if any(given) else str(fields.get("url") or "")


def _article(lines: Lines, title: str | None, reader: Iterator[str], split: Split) -> list[str]:
    """Return the sentences of one ``<doc>``, without the line that repeats its title."""
    begun, size = lines.number, 0
    body: list[str] = []
    for line in reader:
        if _DOC_LINE.match(line) and not line.startswith("</doc>"):
            break
        size += len(line)
        _require_size(lines, size)
        body.append(line.removesuffix("</doc>").rstrip())
        if line.endswith("</doc>"):
            return _sentences(body, title if title is None else html.unescape(title), split)
    name = f"that begins in line {begun}" if title is None else repr(shown(title, 60))
    raise BadInput(f"{lines.name}: the document {name} has no </doc>: the file is cut short")


def _sentences(body: list[str], title: str | None, split: Split) -> list[str]:
    """Return the sentences of paragraphs, without a first line that is the title.

    Older extractors name no title: then it is a line before a blank one, without a full stop.
    """
    start = next((number for number, line in enumerate(body) if line), 0)
    if title is None:
        heading = not any(body[start + 1 : start + 2]) and body[start][-1:].isalnum()
        start += heading and any(body[start + 1 :])
    elif body and body[start] == title:
        start += 1
    return [sentence for line in body[start:] if line for sentence in split(line)]


def _wikitext(lines: Lines, first: str, reader: Iterator[str], split: Split) -> Iterator[Document]:
    title: str | None = first
    while title is not None:
        sentences: list[str] = []
        size, heading = 0, None
        for line in reader:
            if _TITLE.fullmatch(line):
                heading = line
                break
            size += len(line)
            _require_size(lines, size)
            if not (line.startswith("= = ") and line.endswith(" = =")):  # a heading
                sentences += split(_JOINED.sub(r"\1", line))
        if sentences:
            yield Document(key=title[2:-2], sentences=sentences)
        title = heading


def _json(lines: Lines, first: str, reader: Iterator[str], split: Split) -> Iterator[Document]:
    line: str | None = first
    while line is not None:
        try:
            fields = parse_json(line)
            if not isinstance(fields, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise BadInput(
                f"{lines.where} is not JSON ({shown(error)}): write one object a line "
                f"(jq -c . FILE)"
            ) from error
        if fields.get("text", "") is None:
            fields["text"] = ""
        text = fields.get("text")
        if not isinstance(text, str) or (not text.isascii() and _unpaired(text)):
            what = 'no "text"' if text is None else '"text" that is not text'
            raise BadInput(
                f"{lines.where}: an object with {what} (it has "
                f"{', '.join(shown(name, 20) for name in [*fields][:9])}): name the text of a "
                f'document "text"'
            )
        yield from _of_fields(fields, split)
        line = next((line for line in reader if line), None)


def _table(path: Path, split: Split) -> Iterator[Document]:
    for fields in records(path):
        if fields["text"]:
            yield from _of_fields(fields, split)


def _of_fields(fields: Mapping[str, Any], split: Split) -> Iterator[Document]:
    """Yield the document of an object or a row whose ``text`` has a paragraph a line, if any."""
    title = fields.get("title")
    body = [paragraph.strip() for paragraph in fields["text"].replace("\0", "").splitlines()]
    sentences = _sentences(body, title if isinstance(title, str) else "", split)
    if sentences:
        yield Document(key=_key(fields), sentences=sentences)


def _unpaired(text: str) -> bool:
    """Return whether text holds half of a surrogate pair, which UTF-8 cannot."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _require_size(lines: Lines, size: int) -> None:
    if size > DOCUMENT_LIMIT:
        raise BadInput(
            f"{lines.where}: one document of more than {DOCUMENT_LIMIT >> 20} Mi characters: "
            f"separate documents with a blank line"
        )
