# SPDX-License-Identifier: Apache-2.0
"""Formats of text: what is read alike, and what is refused by name instead of read as text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from text_files import articles

from bertbench.common.errors import BadInput
from bertbench.common.prepare import corpus, sources
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.sentences import split_sentences
from bertbench.common.prepare.sources import input_files

TEXT = [
    ["The river runs.", "It sings!"],
    ["A stone is old?", "Yes.", "Caf\u00e9s are open."],
]
PLAIN = "\n\n".join("\n".join(d) for d in TEXT) + "\n"
ROWS = [
    {"id": str(i), "url": f"https://x.org/{i}", "title": f"T{i}", "text": "\n".join(d)}
    for i, d in enumerate(TEXT)
]


def wiki(attributes: str, title: str = "T{i}\n\n", rows=TEXT) -> str:
    """WikiExtractor's files of any version."""
    made = [
        f"<doc {attributes}>\n{title}".replace("{i}", str(i)) + " ".join(d) + "\n</doc>\n"
        for i, d in enumerate(rows)
    ]
    return "\n".join(made)


def json_lines(rows=ROWS, **settings) -> str:
    return "".join(json.dumps(row, **settings) + "\n" for row in rows)


def read(*paths):
    return [d for path in input_files(paths) for d in documents(path)]


def tar_of(name: str, content: bytes, mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for member, text in ((name, content), (f"._{name}", b"\0\1\2 of another system")):
            info = tarfile.TarInfo(member)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return target.getvalue()


ALIKE = {
    "mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16-be": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "utf-32": PLAIN.encode("utf-32"),
    "gb18030": b"\x84\x31\x95\x33" + PLAIN.encode("gb18030"),
    "old macs": PLAIN.replace("\n", "\r").encode(),
    "windows": PLAIN.replace("\n", "\r\n").encode(),
    "zero bytes": PLAIN.replace("river", "ri\0ver").encode(),
    "two marks": codecs.BOM_UTF8 + PLAIN.replace("A stone", "\ufeffA stone").encode(),
    "wiki": wiki('id="{i}" url="u" title="T{i}"').encode(),
    "wiki with mark": codecs.BOM_UTF8 + wiki('id="{i}" url="u" title="T{i}"').encode(),
    "wiki in utf-16": wiki('id="{i}" url="u" title="T{i}"').encode("utf-16"),
    "wiki of 2.x": wiki('id="{i}" revid="9" url="u" title="T{i}"').encode(),
    "wiki without titles": wiki('id="{i}" url="http://x.org/wiki/T{i}"').encode(),
    "wiki with quotes": wiki("id='{i}' title='T{i}'").encode(),
    "wiki old": wiki('id="{i}" url="u" title="T{i}" nonfiltered="1" dbindex="0"').encode(),
    "wiki of one mark": wiki('id="{i}" url="u" title="T{i}"')
    .replace("\n</doc>", "</doc>")
    .encode(),
    "json": json_lines().encode(),
    "json of other characters": json_lines(ensure_ascii=False).encode("utf-16"),
    "json of text only": json_lines([{"text": row["text"]} for row in ROWS]).encode(),
    "json with empty rows": json_lines([{"text": None}, *ROWS, {"text": ""}]).encode(),
    "json with the title again": json_lines(
        [{**row, "text": f"{row['title']}\n\n{row['text']}"} for row in ROWS]
    ).encode(),
    "wikitext-103": "".join(
        f" \n = T{i} = \n \n = = History = = \n \n {' '.join(d)} \n = = = Old = = = \n"
        for i, d in enumerate(TEXT)
    ).encode(),
    "gz": gzip.compress(PLAIN.encode()),
    "two.gz": gzip.compress(PLAIN[:40].encode()) + gzip.compress(PLAIN[40:].encode()),
    "upper.TXT.GZ": gzip.compress(PLAIN.encode()),
    "bz2": bz2.compress(PLAIN.encode()),
    "upper.BZ2": bz2.compress(PLAIN.encode()),
    "xz": lzma.compress(PLAIN.encode()),
    "twice": bz2.compress(gzip.compress(PLAIN.encode())),
    "tar": tar_of("a", PLAIN.encode()),
    "tar of gz": tar_of("a.gz", gzip.compress(PLAIN.encode())),
    "upper.TAR.XZ": tar_of("a", PLAIN.encode(), "w:xz"),
    "tgz": tar_of("a", PLAIN.encode(), "w:gz"),
    "-dash.txt": PLAIN.encode(),
    "sp ace \u00fc \u6f22.txt": PLAIN.encode(),
}


@pytest.mark.parametrize("name", ALIKE)
def test_read_alike(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ALIKE[name])
    assert [d.sentences for d in read(path)] == TEXT


def test_layouts_name_documents_alike(tmp_path):
    for name in ("wiki", "wiki of 2.x", "json"):
        (tmp_path / name).write_bytes(ALIKE[name])
        assert [d.key for d in read(tmp_path / name)] == ["0\tT0", "1\tT1"]


LONG = [[f"{w} {n}." for n in range(5)] for w in ("River", "Stone")]
DUMP = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n<page>\n<title>T</title>\n'
    "<text>'''T''' is.</text>\n</page>\n</mediawiki>\n"
)
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as made:
    made.writestr("a.txt", PLAIN)

TAGGED = "".join(f"{word} {{}}\n" for word in ("Anna", "runs", "fast", ".")) + "\n"
REFUSED = {
    "dump.xml": (DUMP, r"is a raw Wikipedia dump \(XML\).*WikiExtractor"),
    "dump without head": (DUMP.replace("<mediawiki", "<!-- x -->\n<mediawiki"), "markup"),
    "dump with prolog": ('<?xml version="1.0"?>\n' + DUMP, "markup"),
    "abstracts": ("<feed>\n<doc>\n<title>T</title>\n", "a raw Wikipedia dump"),
    "dump.bz2": (bz2.compress(DUMP.encode()), "a raw Wikipedia dump"),
    "page.html": ("<!DOCTYPE html>\n<p>It is.</p>\n", "is HTML, not text"),
    "fragment": ("It is.\n" + "<p>It was.</p>\n<p>So.</p>\n" * 9, "18 of the first 19 .* markup"),
    "trec": ("<DOC>\n<DOCNO> 1 </DOCNO>\n<TEXT>\nIt is.\n</TEXT>\n</DOC>\n", "markup"),
    "wiki --html": (
        wiki('id="{i}" title="T{i}"', rows=[["<p>It is.</p>\n<li>Was.</li>"]] * 9),
        "hold markup",
    ),
    "wikitext": ("'''T''' is a [[stone]].\n{{Infobox}}\n[[File:a.jpg]]\n\nx.\n", "hold markup"),
    "README": ("# Title\n\nText.\n\n## More\n\n- see [x](http://x.org)\n", "hold markup"),
    "rows.csv": ("id,title,text\n" + '1,T,"It is. So, it was."\n' * 9, r"CSV or TSV.*JSON lines"),
    "no head.csv": ('7,"It is.",x\n8,"It, too.",y\n9,"So.",z\n', "CSV or TSV"),
    "long cells.csv": (f'id,text\n1,"{"x " * 90_000}"\n2,"y"\n', "CSV or TSV"),
    "labels.csv": ('"It is so, and so.",good\n"It was.",bad\n' * 30, "CSV or TSV"),
    "quoted.csv": ('"It is so, and so.","x y."\n"It was.","z, z."\n', "CSV or TSV"),
    "bars": ("1 | It is. | x\n2 | It was. | y\n", r"CSV or TSV"),
    "python": ("{'id': 1, 'text': 'It is.'}\n" * 3, "hold markup"),
    "tags": ("It is.\n" * 3000 + "<br/>\nSo.\n", "line 3001: '<br/>' in plain text"),
    "half.csv": ("id;text\n1;It is\n2;So\n", "CSV or TSV"),
    "rows.tsv": ("1\tIt is.\n2\tSo, it was.\n\n3\tx\n", "CSV or TSV"),
    "conll": (("# text = It is\n" + "1\tIt\tit\tPRON\n" * 7 + "\n") * 9, "CSV or TSV"),
    "mrpc.tsv": ('1\t"It is.\tIt was.\n0\tSo.\t"Was it.\n1\tIt.\tSo it was.\n' * 9, "CSV or TSV"),
    "ner": (TAGGED.format("B-PER", "O", "O", "O") * 9, r"one word and its tags a line \(CoNLL\)"),
    "conll-2003": (TAGGED.format("NNP B O", "VBZ O O", "RB O O", ". O O") * 9, "CoNLL"),
    "brown": ("The/AT river/NN runs/VBZ ./.\n" * 9, "hold markup"),
    "rows.yaml": ("- id: 1\n  title: T\n  text: >\n    It is.\n    So.\n\n" * 9, "hold markup"),
    "maps.yaml": ("- title: The T\n  text: It is. So it was.\n" * 9, "hold markup"),
    "entities": ("&nbsp;It is.\nIt&#39;s so.\nSo &quot;it&quot; was.\n\n" * 9, "hold markup"),
    "fasttext": ("__label__3 It is.\n__label__1 So.\n" * 9, "hold markup"),
    "headings": ("== Head ==\n* It is.\n* So.\n\n" * 9, "hold markup"),
    "templates": ("It {{ is | so }}.\nSo it was.\n\n" * 9, "hold markup"),
    "settings.toml": ('title = "T"\ntext = "It is."\n\n' * 9, "hold markup"),
    "array.json": (json.dumps(ROWS), "a JSON array.*jq -c"),
    "array of lines.json": (json.dumps(ROWS, indent=1), "a JSON array"),
    "array of text": (json.dumps(["It is.", "So."]), "a JSON array"),
    "object.json": (json.dumps({"data": ROWS}, indent=1), "line 1 is not JSON.*jq -c"),
    "other fields": (json_lines([{"id": 1, "content": "It is."}]), r'no "text" .*id, content'),
    "fields": (json_lines([{"text": {"en": "x"}}]), '"text" that is not text'),
    "text of another kind": (json_lines([{"text": ["It is."]}]), '"text" that is not text'),
    "half a pair": ('{"text": "It is \\ud800."}\n', '"text" that is not text'),
    "deep": ('{"text": ' + "[" * 100_000 + "\n", "line 1 is not JSON.*too deeply"),
    "digits": ('{"text": "x", "id": ' + "9" * 5000 + "}\n", "line 1 is not JSON.*too large"),
    "json after a line": ("INFO: begins\n" + json_lines(ROWS * 9), "hold markup"),
    "line after json": (json_lines() + "INFO: done\n", "line 3 is not JSON"),
    "cut json": (json_lines()[:-9], "line 2 is not JSON"),
    "doc after a line": ("INFO: begins\n" + wiki('id="{i}"'), "line 2: .*before the first <doc>"),
    "line between docs": (
        wiki('id="{i}"').replace("</doc>\n\n", "</doc>\nINFO: 12\n"),
        r"found 'INFO: 12' in line 6: delete",
    ),
    "doc in doc": (wiki('id="{i}"').replace("</doc>\n\n", "\n"), "line 1 has no </doc>"),
    "crawl.warc": ("WARC/1.0\r\nWARC-Type: response\r\n\r\nIt is.\n", "a WARC file"),
    "crawl.warc.gz": (gzip.compress(b"WARC/1.0\r\nWARC-Type: warcinfo\r\n"), "a WARC file"),
    "film.srt": ("1\n00:00:01,000 --> 00:00:02,000\nIt is.\n\n" * 9, "hold markup"),
    "paper.tex": ("\\documentclass{article}\n\\begin{document}\n", "is LaTeX"),
    "dump.sql": ("INSERT INTO page VALUES (1,'T');\n", "an SQL dump"),
    "text.zip": (ZIP.getvalue(), "a zip archive.*unzip"),
    "zip of no suffix": (ZIP.getvalue(), "a zip archive.*unzip"),
    "text.zst": (b"\x28\xb5\x2f\xfd\x04\x00", "zstd-compressed.*zstd -d"),
    "zst in tar": (tar_of("b.zst", b"\x28\xb5\x2f\xfd\x04\x00"), r"zst in tar:b\.zst is zstd"),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document.*pdftotext"),
    "part": (b"PAR1\x15\x04", "a binary table"),
    "part.hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5.*--data"),
    "utf-16-le": (PLAIN.encode("utf-16-le"), "UTF-16LE without .*iconv -f UTF-16LE"),
    "utf-16-be": (PLAIN.encode("utf-16-be"), "UTF-16BE without .*iconv -f UTF-16BE"),
    "zeros": (b"\0" * 5000, "is binary"),
    "zeros within": (PLAIN.encode() * 99 + b"\0" * 5000, "of zero bytes"),
    "latin-1": (PLAIN.encode("latin-1"), "line 6: not UTF-8 .*iconv -f ENCODING"),
    "latin-1 of macs": (PLAIN.replace("\n", "\r").encode("latin-1"), "line 6: not UTF-8"),
    "cut.gz": (gzip.compress(PLAIN.encode() * 99)[:90], "cannot be read"),
    "text.gz": (PLAIN.encode(), r"text\.gz cannot be read: Not a gzipped file"),
    "cut tar.xz": (tar_of("a", PLAIN.encode() * 99, "w:xz")[:200], "cannot be read"),
    "escape\x1b[31m.xz": (b"x", r"escape\?\[31m\.xz cannot be read"),
    "member.tar": (tar_of("\x1b]0;x\x07\u202e", b"caf\xe9"), r"member\.tar:\?\]0;x\?\?, line 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_in_one_line(tmp_path, name):
    content, match = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=match) as caught:
        read(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        "It costs 3 < 5, and so on.",
        "<3 is a heart.",
        "<mark> Hello there.",
        "the <unk> river , runs .",
        '"Go," he said, "now."',
        "[1] See there.",
        "[ Editor's note. ]",
        "{ is a brace, and } too.",
        "1,234 people, and more.",
        "So, it is, in the end.",
        "Rome; then Paris.",
        "- a point",
        "\u4eca\u5929,\u5929\u6c14\u597d.",
        "C# and #1 are names.",
        "formula a_{1} = b | c",
        "ORCA is a whale.",
        "PAR10 is a score.",
        "<unk>",
        "AT&T; and R&D; too.",
        "x = 3 = y",
        "= is a sign.",
        "HAMLET:",
        "Anna: So it is.",
        "- Anna: So it is.",
        "* a point",
        "TCP/IP and AC/DC are names.",
        "It was 5 O",
    ],
)
def test_prose_is_not_refused(tmp_path, line):
    path = tmp_path / "a"
    text = "\n\n".join("\n".join(d) for d in articles(20))
    path.write_text(f"{line}\n{line}\n\n{text}")
    assert read(path)[0].sentences == [line, line]


@pytest.mark.parametrize(
    "lines",
    [
        ["HAMLET:", "Words , words , words .", "POLONIUS:", "What is the matter ?"],
        ["Anna: So it is.", "Bert: It was!", "Anna: Yes?"],
        ["* It is.", "* So it was.", "1. First.", "- Third: so."],
        ["JOHN SMITH", "ANNA MILLER", "MARY STONE"],
        ["It is.", "He ran.", "She sang."],
        ["---", "It is so.", "* * *", "=====", "So it was."],
        ['"It is', "and so on.", 'It was so."'],
    ],
)
def test_prose_of_any_shape_is_not_refused(tmp_path, lines):
    """Plays, dialogues, lists, names, sentences of equal length: all of a text."""
    path = tmp_path / "a"
    path.write_text("\n\n".join("\n".join(lines) for _ in range(30)))
    assert [d.sentences for d in read(path)] == [lines] * 30


def test_wikitext_is_read_by_its_titles(tmp_path):
    text = " = A = \n \n It has 1 @,@ 000 up @-@ to @-@ date towns . So it was . \n = = B = = \n\n"
    (tmp_path / "wiki.test.tokens").write_text(f"{text} Its end . \n = C = \n x . \n")
    one, two = read(tmp_path / "wiki.test.tokens")
    (tmp_path / "long").write_text("= A =\n" + "= " * 100_000 + "x\n")
    assert len(read(tmp_path / "long")) == 1  # at once
    assert (one.key, two.key) == ("A", "C")
    assert one.sentences == ["It has 1,000 up-to-date towns .", "So it was .", "Its end ."]


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        (
            "\u597d\u3002\u8d70\uff01\uff1f\u662f\uff1b",
            ["\u597d\u3002", "\u8d70\uff01\uff1f", "\u662f\uff1b"],
        ),
        (
            "\u4ed6\u8bf4\uff1a\u201c\u597d\u3002\u201d\u8d70\u3002",
            ["\u4ed6\u8bf4\uff1a\u201c\u597d\u3002\u201d", "\u8d70\u3002"],
        ),
        (
            "\u300c\u662f\u3002\u300d\u3068\u8a00\u3046\u3002\u6b21\u3002",
            ["\u300c\u662f\u3002\u300d\u3068\u8a00\u3046\u3002", "\u6b21\u3002"],
        ),
        ("\uff13\uff0e\uff15\u4e07\uff0e\u6b21", ["\uff13\uff0e\uff15\u4e07\uff0e", "\u6b21"]),
        ("\u4f60\u597d!\u8d70.\u662f", ["\u4f60\u597d!", "\u8d70.", "\u662f"]),
        ("Yahoo!\u77e5\u6075\u3002", ["Yahoo!\u77e5\u6075\u3002"]),
        (
            "\u092f\u0939 \u0939\u0948\u0964 \u0935\u0939\u0965\u0914\u0930",
            ["\u092f\u0939 \u0939\u0948\u0964", "\u0935\u0939\u0965", "\u0914\u0930"],
        ),
        (
            "\u0647\u0644\u061f \u0646\u0639\u0645\u06d4 \u062c\u06cc",
            ["\u0647\u0644\u061f", "\u0646\u0639\u0645\u06d4", "\u062c\u06cc"],
        ),
        (
            "\u1230\u120b\u121d\u1362\u12a5\u123a\u1362",
            ["\u1230\u120b\u121d\u1362", "\u12a5\u123a\u1362"],
        ),
        (
            "Dr. \u674e is in the U.S. Navy. \u597d\u3002",
            ["Dr. \u674e is in the U.S. Navy.", "\u597d\u3002"],
        ),
    ],
)
def test_sentences_of_other_scripts(paragraph, sentences):
    assert split_sentences(paragraph) == sentences


def test_bombs_and_endless_lines_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNPACK_FREE", 1 << 20)
    for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(b"It is.\n" * (1 << 18)))
        with pytest.raises(BadInput, match=r"unpacks to more than .* MB"):
            read(tmp_path / name)
    twice = gzip.compress(gzip.compress(b"\n" * (1 << 22)))
    (tmp_path / "twice").write_bytes(twice)
    with pytest.raises(BadInput, match=r"unpacks to more than .* MB"):
        read(tmp_path / "twice")
    monkeypatch.setattr(sources, "LINE_LIMIT", 1 << 21)
    (tmp_path / "line").write_bytes(b"It is.\n" + b"x" * (1 << 23))
    with pytest.raises(BadInput, match=r"line 2 is longer than 2 Mi characters"):
        read(tmp_path / "line")
    deep = b"It is."
    for _ in range(9):
        deep = gzip.compress(deep)
    (tmp_path / "deep").write_bytes(deep)
    with pytest.raises(BadInput, match="packed more than 4 times"):
        read(tmp_path / "deep")
    hole = tarfile.TarInfo("hole")
    hole.size = 1 << 40
    (tmp_path / "hole.tar").write_bytes(hole.tobuf() + b"\0" * 9999)
    with pytest.raises(BadInput):
        read(tmp_path / "hole.tar")


def test_documents_without_an_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DOCUMENT_LIMIT", 10_000)
    for name, content in (
        ("plain", "It is so.\n" * 2000),
        ("wiki", '<doc id="1">\n' + "x\n" * 10_001),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(BadInput, match="one document of more than"):
            read(tmp_path / name)


def test_only_plain_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(BadInput, match="is not a plain file"):
            input_files([Path(path)])
    folder = tmp_path / "in"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "objects").write_bytes(b"\0\1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text(PLAIN)
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / "loop").symlink_to(folder)
    assert [d.sentences for d in read(folder)] == TEXT
