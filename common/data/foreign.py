# SPDX-License-Identifier: Apache-2.0
"""Text from files of any origin: unpacked and decoded by content, never by a name's ending.

What the bytes are instead of text is named, with the way to what was meant.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from pathlib import Path

from bertbench.common.files import read_bytes

_PACKED = "unpack it"
_KINDS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer: `git lfs pull` fetches the file"),
    (b"/annex/objects/", "a git-annex pointer: `git annex get` fetches the file"),
    (b"PK\x03\x04", f"a zip archive: {_PACKED}"),
    (b"BZh", f"packed by bzip2: {_PACKED}"),
    (b"\xfd7zXZ\x00", f"packed by xz: {_PACKED}"),
    (b"\x28\xb5\x2f\xfd", f"packed by zstd: {_PACKED}"),
    (b"PAR1", "a Parquet table: write its rows as JSON lines"),
    (b"ARROW1", "an Arrow table: write its rows as JSON lines"),
    (b"\x89HDF", "an HDF5 file, no text"),
    (b"<!", "a web page (HTML): download the file itself"),
    (b"<html", "a web page (HTML): download the file itself"),
    (b"<?xml", "XML"),
)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
"""UTF-32's little-endian mark begins with UTF-16's."""


def read_text(path: Path, limit: int) -> str:
    """Return a plain file's text, as ``text_of``; also raises what ``read_bytes`` raises."""
    return text_of(read_bytes(path, limit), limit)


def text_of(raw: bytes, limit: int) -> str:
    """Return the text of ``raw``, UTF-8 without its byte order mark; gzip is unpacked.

    Raises ValueError, whose text goes on after a file's name: for other formats by their name, for
    damaged gzip, bytes that are not UTF-8, or more than ``limit`` bytes.
    """
    if raw[:2] == b"\x1f\x8b":
        raw = _unpacked(raw, limit)
    known = kind(raw)
    if known is not None:
        raise ValueError(f"is {known}")
    if raw.startswith(_UTF16) or b"\0" in raw[:4]:
        raise ValueError("is not UTF-8 but UTF-16 or UTF-32: convert it, as with iconv")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not UTF-8 (byte {error.start}): convert it, or fetch it again"
        ) from error


def kind(raw: bytes) -> str | None:
    """Return the known format, other than plain text, of a file that begins so; None for others."""
    start = raw[:64].lstrip()
    for mark, name in _KINDS:
        if start.startswith(mark) or (mark[:1] == b"<" and start.lower().startswith(mark)):
            return name
    return f"a tar archive: {_PACKED}" if raw[257:262] == b"ustar" else None


def _unpacked(raw: bytes, limit: int) -> bytes:
    content = bytearray()
    try:
        stream = gzip.GzipFile(fileobj=io.BytesIO(raw))
        while len(content) <= limit and (part := stream.read(1 << 20)):
            content += part
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError("is gzip that is damaged or cut short: fetch it again") from error
    if len(content) > limit:
        raise ValueError(f"is larger than {limit >> 20} MiB when unpacked")
    return bytes(content)
