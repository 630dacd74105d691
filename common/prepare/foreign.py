# SPDX-License-Identifier: Apache-2.0
"""Recognise input that is not text, by its content, and name its format and the fix.

Read as text, markup and tables become samples and vocabulary without any error.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

SAMPLE_LINES, SAMPLE_CHARACTERS = 1000, 1 << 20
"""The start of a file that shares are taken of ends with either."""
MOST_MARKUP = 0.1
"""Share of lines that may hold markup."""

_AS_TEXT = "save it as UTF-8 text"
_ZIP = "unpack it (unzip FILE) and name the folder that comes out; a document: save it as text"
_ROWS = 'write its text column, one sentence a line, or JSON lines with a "text" field'
_BINARY: tuple[tuple[bytes, str, str], ...] = (
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a zip archive or an office document", _ZIP),
    (
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
        "zstd-compressed, which Python's library does not read before 3.14",
        "unpack it (tar --zstd -xf FILE, or zstd -d FILE) and name the folder or file that comes "
        "out",
    ),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it (7z x FILE) and name the folder"),
    (rb"Rar!\x1a", "a rar archive", "unpack it (unrar x FILE) and name the folder"),
    (rb"\x04\x22\x4d\x18", "lz4-compressed", "unpack it (lz4 -d FILE)"),
    (rb"\x1f[\x9d\xa0]", "compressed by compress(1)", "unpack it (gzip -d FILE)"),
    (rb"LZIP[\0-\x1f]", "lzip-compressed", "unpack it (lzip -d FILE)"),
    (
        rb"(PAR1|ARROW1|FEA1|ORC|Obj)[\0-\x1f]",
        "a binary table (Parquet, Arrow, ORC or Avro)",
        f"name a Parquet or Arrow file FILE.parquet or FILE.arrow; of others {_ROWS}",
    ),
    (rb"\x89HDF", "an HDF5 file", "it is a prepared data set: use `bertbench run --data FOLDER`"),
    (rb"SQLite format 3\0", "an SQLite database", _ROWS),
    (rb"%PDF-", "a PDF document", "extract its text (pdftotext FILE)"),
    (rb"%!PS", "a PostScript document", _AS_TEXT),
    (rb"\xd0\xcf\x11\xe0", "an office document", _AS_TEXT),
    (rb"\{\\rtf", "an RTF document", _AS_TEXT),
    (rb"\x7fELF|\x89PNG|\xff\xd8\xff|GIF8[79]a", "a program or a picture", "name text files only"),
)
_EXTRACT = "extract its text first"
_FIRST: tuple[tuple[str, str, str], ...] = (
    (
        r"<mediawiki\b|<feed>",
        "a raw Wikipedia dump (XML)",
        "extract its text with WikiExtractor (python -m wikiextractor.WikiExtractor FILE), and "
        "name the folder that it makes",
    ),
    (r"(?i)<!doctype html|<html\b|<head\b|<body\b", "HTML", _EXTRACT),
    (  # but not a chat's <name> and text
        r"<[?!]|<(?!(?:unk|s|pad|mask)>)[A-Za-z][\w:.-]*(\s+[\w:.-]+\s*=|\s*/?>\s*(<|$))",
        "XML or other markup",
        _EXTRACT,
    ),
    (r"WARC/\d", "a WARC file of a web crawl", "extract its text, without the WARC headers"),
    (r"WEBVTT", "subtitles", _EXTRACT),
    (r"\\documentclass|\\begin\{|%!TEX", "LaTeX", _EXTRACT),
    (r"-- MySQL dump|--\s*PostgreSQL|INSERT INTO |CREATE TABLE ", "an SQL dump", _EXTRACT),
    (
        r'\[\s*(\{|$)|\[\s*".*"[,\]]$',
        "a JSON array",
        "make it JSON lines (jq -c '.[]' FILE), each with a \"text\" field",
    ),
)
_MARKUP = re.compile(
    r"</[A-Za-z][\w:.-]*\s*>|<[A-Za-z][\w:.-]*\s+[\w:.-]+\s*=|<!--|<\?xml|&lt;/?\w"
    r"|(?i:<(?:br|p|hr|li|div|span|td|tr|h\d|b|i|ref)\s*/?>)"
    r"|\[\[[^\[\]]+\]\]|\{\{\w|\{\{[^{}]+\}\}|^\{\||^\|[-}]|'''|^={2,6}[^=]+={2,6}$"  # wikitext
    r"|^#{1,6} \S|^```|\]\(https?:|^!\[|^\|.*\|$"  # markdown
    r"|\\(?:begin|end|section|subsection|cite|ref|textbf|emph)\{"
    r"|^\d+:\d\d:\d\d[,.]\d+ -->"
    r"|\*\*\S[^*]*\*\*"
    r"|^[{\[].*[\"'].*[}\]],?$"  # JSON, or Python's
    r"|&(?:[A-Za-z]{2,8}|#\d{1,6}|#x[\dA-Fa-f]{1,6});"  # HTML's entities
    r"|^(?:- )?[\w-]+: +(?:[>|][-+]?|\d+|\".*\"|'.*'|true|false|null)$"  # YAML; a play has names
    r"|^(?:- )?(?:id|title|text|content|body|url|label|date|source): \S"
    r"|^[\w.-]+ ?= ?[\"'].*[\"']$"  # TOML, or a shell's
    r"|^__label__\S|^\.\. [\w-]+::"  # fastText, reStructuredText
    r"|^(?:\S+[/_][A-Z$.,:]{1,5} ){3}"  # words with their parts of speech
)


def refuse_binary(name: str, head: bytes, suffix: str = "") -> None:
    """Raise BadInput when the first bytes, or the suffix of an empty file, are a known format's."""
    if suffix.lower() == ".zst" and not head:
        head = b"\x28\xb5\x2f\xfd"
    for pattern, what, fix in _BINARY:
        if re.match(pattern, head, re.DOTALL):
            raise BadInput(f"{shown(name)} is {what}: {fix}")
    zeros = [head[start::2].count(0) / max(1, len(head) // 2) for start in (0, 1)]
    if max(zeros) > 0.3:
        if min(zeros) < 0.1:
            code = "UTF-16LE" if zeros[1] > zeros[0] else "UTF-16BE"
            raise BadInput(
                f"{shown(name)} is {code} without a byte order mark: convert it "
                f"(iconv -f {code} -t UTF-8 FILE)"
            )
        raise BadInput(f"{shown(name)} is binary, not text: name text files only")


def refuse_first_line(name: str, line: str) -> None:
    """Raise BadInput when the first line that is not blank begins another format than text."""
    for pattern, what, fix in _FIRST:
        if re.match(pattern, line):
            raise BadInput(f"{shown(name)} is {what}, not text: {fix}")


def require_prose(name: str, lines: Sequence[str]) -> None:
    """Raise BadInput when the first ``lines`` of a file are markup, JSON, a table or tags."""
    if _is_tagged(lines):
        raise BadInput(
            f"{shown(name)} has one word and its tags a line (CoNLL), not text: write the words of "
            f"a sentence on one line"
        )
    for delimiter, what in (("\t", "tabs"), (",", "commas"), (";", "semicolons"), ("|", "|")):
        if _is_table(lines, delimiter):
            raise BadInput(
                f"{shown(name)} is a table with columns between {what} (CSV or TSV), not text: "
                f"{_ROWS}"
            )
    marked = [line for line in lines if _MARKUP.search(line)]
    if len(marked) > max(1, MOST_MARKUP * len(lines)):
        raise BadInput(
            f"{shown(name)}: {len(marked)} of the first {len(lines)} sentences hold markup, for "
            f"example {shown(marked[0], 60)!r}: extract the text first"
        )


def _is_table(lines: Sequence[str], delimiter: str) -> bool:
    """Return whether lines have equally many cells, and the cells look like a table's.

    In prose, commas are before spaces, and lines differ in how many they have.
    """
    if delimiter == "\t":  # a quotation mark is one, and need not be closed
        widths = Counter(len(line.split("\t")) for line in lines if line)
        width, common = max(widths.items(), key=lambda one: one[1], default=(0, 0))
        return width > 1 and widths.total() > 1 and common >= 0.8 * widths.total()
    limit = csv.field_size_limit(sum(map(len, lines)) + len(lines))
    try:
        rows = [row for row in csv.reader((f"{x}\n" for x in lines), delimiter=delimiter) if row]
    finally:
        csv.field_size_limit(limit)
    if len(rows) < 2:
        return False
    width, common = Counter(map(len, rows)).most_common(1)[0]
    if width < 2:
        return False
    if common < 0.95 * len(rows):
        return False
    body = [row for row in rows if len(row) == width]
    inner = [cell for row in body for cell in row[1:]]
    if delimiter != "|" and sum(cell[:1] == " " for cell in inner) > 0.05 * len(inner):
        return False
    if all(re.fullmatch(r"[\w .-]{0,39}[\w) ]", cell) for cell in rows[0]):
        return True  # names of columns
    quoted = sum(line.startswith('"') and f'"{delimiter}' in line for line in lines)
    return quoted > 0.9 * len(rows) or any(
        all(re.fullmatch(r" *[\d.:/+-]+ *", cell) for cell in column)
        or len(set(column)) <= 0.1 * len(column)
        for column in zip(*body[1:], strict=True)
    )


def _is_tagged(lines: Sequence[str]) -> bool:
    """Return whether lines are a word each, with equally many tags that are in capitals."""
    rows = [line.split(" ") for line in lines if line]
    width, common = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    if not 2 <= width <= 12 or len(rows) < 20 or common < 0.95 * len(rows):
        return False
    *others, tags = zip(*(row for row in rows if len(row) == width), strict=True)
    capitals = sum(bool(re.fullmatch(r"[A-Z][A-Z\d$|+:=]{0,5}(-\w+)?", tag)) for tag in tags)
    return (
        capitals > 0.7 * common
        and len(set(tags)) < max(10, 0.1 * common)
        and max(len(set(column)) for column in others) > len(set(tags))
    )
