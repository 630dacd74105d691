# SPDX-License-Identifier: Apache-2.0
"""The identity of a data set: checksums of its files, and whether they changed under a run.

Data may not be touched before a run's clock starts, so a run notes what the file system knows of
its files when it opens them and hashes them at the end. A file that changed in between has no hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bertbench.common.data import reader
from bertbench.common.data.shards import FORMAT, MANIFEST, natural
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, host_cores, read_bytes, read_json, write_atomic
from bertbench.common.native import cache_dir

FULL_BYTES = 2 << 30
"""Data without a manifest is hashed whole up to this size, about ten seconds on one slow core, and
above it in BLOCKS blocks in all, at least MIN_BLOCKS in each file, and all small datasets."""
BLOCK, BLOCKS, MIN_BLOCKS = 4096, 16384, 8

RACY_NS = 2_000_000_000
"""A file changed so recently may change again without another time stamp."""

HashKind = Literal["manifest", "content", "sampled"]
Signature = tuple[int, int, int, int]


class Identity(NamedTuple):
    """A data set's hash, or why there is none."""

    hash: str | None
    """sha256 in hexadecimal over the names and checksums of the files."""
    kind: HashKind | None
    """``manifest``: checksums that the manifest holds and each file used was verified against;
    ``content``: of all bytes, the same hash; ``sampled``: of blocks, which can miss a change."""
    note: str | None = None


def signature(path: Path) -> Signature:
    """Return size, times of the last change of content and of anything, and inode of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(slots=True, kw_only=True)
class DataSet:
    """The files of a run as they were when it opened them."""

    signatures: dict[Path, Signature] = field(default_factory=dict)
    checksums: dict[Path, str] = field(default_factory=dict)
    """Of those that a manifest lists."""
    found: Identity = field(default=Identity(None, None))
    """The last result of ``identity``."""

    @classmethod
    def open(cls, files: Sequence[Path]) -> DataSet:
        """Note the files' signatures and checksums; reads no data.

        Raises BadInput for a file that is gone, and where files and manifest do not agree.
        """
        try:
            signatures = {path: signature(path) for path in files}
        except OSError as error:
            raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error
        return cls(signatures=signatures, checksums=_listed(files))

    def unverified(self, path: Path) -> str | None:
        """Return the sha256 that ``path`` must have; None where unknown or verified before."""
        want = self.checksums.get(path)
        return None if want is None or _known_sha256(path) == want else want

    def identity(self) -> Identity:
        """Hash the files, in any order of theirs; the hash is None where they changed meanwhile."""
        self.found = self._identity()
        return self.found

    def _identity(self) -> Identity:
        for path, before in self.signatures.items():
            try:
                now = signature(path)
            except OSError as error:
                if path in self.checksums:
                    continue  # what was trained on had the manifest's checksum
                return Identity(None, None, f"no hash of the data: {path}: {error.strerror}")
            if now != before:
                what = f"{path} changed during the run: what was trained on has no hash"
                return Identity(None, None, what)
        files = sorted(self.signatures, key=lambda p: natural(p.name))
        foreign = [path for path in files if path not in self.checksums]
        whole = sum(self.signatures[path][0] for path in foreign) <= FULL_BYTES
        blocks = max(MIN_BLOCKS, BLOCKS // max(1, len(files)))
        work = _sha256 if whole else partial(_sampled, blocks=blocks)
        try:
            with ThreadPoolExecutor(host_cores()) as pool:
                digests = self.checksums | dict(zip(foreign, pool.map(work, foreign), strict=True))
        except (OSError, BadInput) as error:
            return Identity(None, None, f"no hash of the data: {error}")
        kind: HashKind = "manifest" if not foreign else "content" if whole else "sampled"
        return Identity(_combined(files, [digests[path] for path in files]), kind)


def _sha256(path: Path) -> str:
    """Return a file's sha256, from the user's cache where it has not changed since."""
    found = _known_sha256(path)
    if found is None:
        before = signature(path)
        found = file_sha256(path)
        remember(path, found, before)
    return found


def remember(path: Path, sha256: str, before: Signature) -> None:
    """Keep the sha256 of a file whose signature was ``before`` when it was computed.

    Not of one that changed lately, and where the cache cannot be written it is computed again.
    """
    with contextlib.suppress(OSError):
        if signature(path) == before and time.time_ns() - max(before[1:3]) > RACY_NS:
            kept = _kept(path, before)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, sha256)


def _known_sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        found = read_bytes(_kept(path, signature(path)), 64).decode()
        return found if _is_sha256(found) else None
    return None


def _kept(path: Path, state: Signature) -> Path:
    key = hashlib.sha256(repr((os.path.realpath(path), state)).encode()).hexdigest()
    return cache_dir() / "checksums" / key


def _combined(files: Sequence[Path], digests: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path, one in zip(files, digests, strict=True):
        digest.update(f"{path.name}\0{one}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _sampled(path: Path, blocks: int) -> str:
    """Return a hash of a file's size, of ``blocks`` blocks and of its small datasets."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"sampled\0{size}\0{reader.small_datasets(path)}\0".encode())
    with path.open("rb", buffering=0) as file:
        for number in range(blocks):
            file.seek(number * max(0, size - BLOCK) // (blocks - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _listed(files: Sequence[Path]) -> dict[Path, str]:
    """Return the checksums that manifests hold of files.

    Raises BadInput for a file beside those of a manifest that is not in it, and for one missing.
    """
    result: dict[Path, str] = {}
    for folder in sorted({path.parent for path in files}):
        root = next((at for at in (folder, folder.parent) if (at / MANIFEST).is_file()), None)
        names = _checksums_of(root / MANIFEST) if root is not None else {}
        own = {root / name: sha256 for name, sha256 in names.items() if root is not None}
        own = {path: sha256 for path, sha256 in own.items() if path.parent == folder}
        if not own:
            continue
        for path in files:
            if path.parent == folder and path not in own:
                raise BadInput(f"{path} is not in {root}/{MANIFEST}: remove it from the folder")
        for path in own:
            if not path.is_file():
                raise BadInput(f"{path} is in {root}/{MANIFEST}, but missing: copy it again")
        result |= own
    return {path: result[path] for path in files if path in result}


def _checksums_of(manifest: Path) -> dict[str, str]:
    """Return the checksums by name; none of a JSON file that is not a data set's manifest.

    Raises BadInput for a damaged one.
    """
    try:
        content = read_json(manifest)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return {}
        result = {str(name): entry["sha256"] for name, entry in content["files"].items()}
        if not all(map(_is_sha256, result.values())):
            raise ValueError("a sha256 is not 64 hexadecimal digits")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{manifest} is damaged ({type(error).__name__}: {error}): build the data set again"
        ) from error
    return result
