# SPDX-License-Identifier: Apache-2.0
"""Reading text: layouts, sentences, archives, and what is refused."""

from __future__ import annotations

import gzip
import lzma
import tarfile

import pytest
from text_files import SAMPLE, articles, write_plain, write_wiki

from bertbench.common.errors import BadInput
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.sentences import split_sentences
from bertbench.common.prepare.sources import input_files


def read(*paths):
    return [d for path in input_files(paths) for d in documents(path)]


def test_plain_layout_gives_back_the_sentences(tmp_path):
    text = articles(5)
    found = read(write_plain(tmp_path / "a.txt", text))
    assert [d.sentences for d in found] == text
    assert {d.key for d in found} == {""}


def test_several_blank_lines_and_a_missing_last_line_feed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\none .\n two .  \n\n \n\nthree .")
    assert [d.sentences for d in read(path)] == [["one .", "two ."], ["three ."]]


def test_wiki_layout_drops_the_title_and_splits_paragraphs(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="7" url="u" title="Say &quot;Hi&quot;">\nSay "Hi"\n\nIt is. It was!\nSay "Hi"\n\n'
        '</doc>\n\n<doc id="8" url="u" title="Empty">\nEmpty\n\n</doc>\n'
    )
    (document,) = read(path)
    assert document.sentences == ["It is.", "It was!", 'Say "Hi"']
    assert document.key == "7\tSay &quot;Hi&quot;"


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("One. Two? Three! four.", ["One.", "Two?", "Three! four."]),
        ("Dr. J. R. Smith of the U.S. Navy left.", ["Dr. J. R. Smith of the U.S. Navy left."]),
        ('He said "Go." (Then he went.) So.', ['He said "Go."', "(Then he went.)", "So."]),
        ("It costs 3.5 million. 12 people paid.", ["It costs 3.5 million.", "12 people paid."]),
        ("Ellipsis ... \u00c9t\u00e9 came.", ["Ellipsis ...", "\u00c9t\u00e9 came."]),
        ("   ", []),
    ],
)
def test_sentences(paragraph, sentences):
    assert split_sentences(paragraph) == sentences


def test_sentences_lose_no_text():
    paragraph = (
        " ".join(" ".join(d) for d in articles(20)).replace("A1", "B. A1").replace(" .", ".")
    )
    assert "".join(split_sentences(paragraph)).replace(" ", "") == paragraph.replace(" ", "")


def test_folders_archives_and_compression_read_the_same(tmp_path):
    text = articles(6)
    plain = write_plain(tmp_path / "in" / "b" / "one", text[:3])
    write_plain(tmp_path / "in" / "a" / "two", text[3:])
    write_plain(tmp_path / "in" / ".hidden", text)
    in_order = [*text[3:], *text[:3]]
    assert [d.sentences for d in read(tmp_path / "in")] == in_order
    with tarfile.open(tmp_path / "t.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "in" / "a")
        archive.add(plain)
    assert [d.sentences for d in read(tmp_path / "t.tar.xz")] == in_order
    (tmp_path / "one.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "one.xz").write_bytes(lzma.compress(plain.read_bytes()))
    assert [d.sentences for d in read(tmp_path / "one.gz", tmp_path / "one.xz")] == 2 * text[:3]


def test_identity_is_of_the_key_or_else_of_the_text(tmp_path):
    one, other = write_wiki(tmp_path / "w", articles(2)), write_wiki(tmp_path / "v", articles(2, 1))
    assert [d.identity() for d in read(one)] == [d.identity() for d in read(other)]
    same, changed = (read(write_plain(tmp_path / str(s), articles(2, s))) for s in (0, 1))
    assert same[0].identity() == read(write_plain(tmp_path / "x", articles(1)))[0].identity()
    assert same[0].identity() != changed[0].identity()


def test_refusals_name_the_file_and_the_fix(tmp_path):
    def refused(name, content, match):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=match):
            read(tmp_path / name)

    refused("a.tar.zst", b"", r"a\.tar\.zst is zstd.*tar --zstd -xf")
    refused("latin", "caf\u00e9\n".encode("latin-1"), r"latin, line 1: not UTF-8.*iconv")
    refused("cut", b'<doc id="1" url="" title="x">\nText.\n', r"cut: .*'x' has no </doc>")
    refused("odd", b"<doc id=1>\nText.\n</doc>\n", r"odd: expected a <doc id=")
    refused("bad.xz", b"no xz at all", r"bad\.xz cannot be read")
    whole = gzip.compress(b"one .\n" * 1000)
    refused("short.gz", whole[: len(whole) // 2], r"short\.gz cannot be read")
    refused("short.tar.xz", b"\xfd7zXZ\x00", r"short\.tar\.xz cannot be read")
    with pytest.raises(BadInput, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty holds no file"):
        read(tmp_path / "empty")


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE.name} is not beside the repository")
def test_mlperf_sample():
    found = read(SAMPLE)
    assert len(found) == 152  # 153 articles, of which one is empty
    assert "12\tAnarchism" in {d.key for d in found}
    assert sum(len(s.split()) for d in found for s in d.sentences) > 640_000
