# SPDX-License-Identifier: Apache-2.0
"""The steps of `bertbench data prepare` that work on one piece at a time.

Text first gets MLPerf's layout: parts with one sentence a line and a blank line between documents,
and the held-out documents in a separate file. Each part then becomes a spool of samples, with its
own random generator, so that parts can be made in any order.
"""

from __future__ import annotations

import heapq
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from bertbench.common.data.samples import Samples, from_lengths
from bertbench.common.data.tokenization import BertTokenizer, read_vocab
from bertbench.common.prepare.corpus import Document, documents
from bertbench.common.prepare.masking import MaskingOptions, TokenizedText, create_samples
from bertbench.common.prepare.sentences import Split
from bertbench.common.prepare.spool import save_spool

PART_BYTES = 16_000_000
"""A part ends with the input file that reaches this size, so MLPerf's files of about 27 MB are one
part each, as in its procedure; within a file it ends at four times this size."""

EVAL_NAME = "eval"

ENOUGH, MOST_RANDOM_NEXT, RAREST_NEXT, MOST_UNKNOWN = 40, 0.9, 0.01, 0.5
"""Of all samples of two equally frequent kinds, 40 are alike less than once in 10**11 times."""

_LINES = 20_000
"""Sentences tokenised at a time."""


@dataclass(slots=True, kw_only=True)
class Part:
    """One file of text in MLPerf's layout."""

    name: str
    documents: int = 0
    sentences: int = 0
    bytes: int = 0
    lone: int = 0
    """Documents of one sentence."""


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Counts over one part, or over all of them."""

    documents: int = 0
    sentences: int = 0
    wordpieces: int = 0
    """Of the text, before it is repeated dupe_factor times."""
    unknown: int = 0
    """Wordpieces that the vocabulary lacks."""
    samples: int = 0
    tokens: int = 0
    masked: int = 0
    random_next: int = 0

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, int]]) -> Statistics:
        """Return the sums over the counts of ``parts``."""
        found: Counter[str] = Counter()
        for counts in parts:
            found.update(counts)
        return cls(**found)

    def doubts(self) -> list[tuple[str, bool]]:
        """Return what MLPerf's procedure does not give of sound text, and whether it is useless.

        Half of the next sentences are random, and all of documents with one sentence. Bounds are
        wide, and hold from ENOUGH samples on.
        """
        if self.samples < ENOUGH:
            return []
        found = []
        if (share := self.random_next / self.samples) > MOST_RANDOM_NEXT:
            what = (
                f"{share:.1%} of the next sentences are random, where MLPerf's procedure gives 50 "
                f"to {MOST_RANDOM_NEXT:.0%}: most documents have one sentence, or sentences fill "
                f"--max_seq_length"
            )
            found.append((what, share > 1 - RAREST_NEXT))
        if (share := self.unknown / max(1, self.wordpieces)) > MOST_UNKNOWN:
            what = f"{share:.1%} of the text is not in the vocabulary: give one of its language"
            found.append((what, True))
        return found

    def described(self) -> dict[str, int | float | None]:
        """Return the counts, and ratios that show whether the data is plausible.

        None for a ratio without a denominator, and for text counts of samples that came from files.
        """
        ratios = {
            "mean_length": (self.tokens, self.samples),
            "masked_fraction": (self.masked, self.tokens),
            "random_next_fraction": (self.random_next, self.samples),
            "unknown_fraction": (self.unknown, self.wordpieces),
        }
        shown = {name: round(a / b, 6) if b else None for name, (a, b) in ratios.items()}
        of_text = ("documents", "sentences", "wordpieces", "unknown")
        unseen = dict.fromkeys(() if self.documents else of_text)
        return {**asdict(self), **unseen, **shown}


def held_out_below(files: Iterable[Path], number: int, split: Split | None = None) -> int:
    """Return the bound of the ``number`` lowest identities in ``files``; duplicates add to them."""
    identities = (document.identity() for path in files for document in documents(path, split))
    return 1 + max(heapq.nsmallest(number, identities), default=-1)


def _write_document(file: IO[bytes], part: Part, document: Document) -> None:
    text = ("\n".join(document.sentences) + "\n\n").encode()
    file.write(text)
    part.documents += 1
    part.sentences += len(document.sentences)
    part.lone += len(document.sentences) == 1
    part.bytes += len(text)


def split_text(
    files: Iterable[Path], folder: Path, below: int, split: Split | None = None
) -> tuple[list[Part], Part]:
    """Write the parts and the evaluation text of ``files``; the order of documents is kept.

    A document is held out for evaluation when its 64-bit identity is less than ``below``. A part
    has at least two documents where there are two, since a random next sentence is another's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = Part(name=EVAL_NAME)
    parts: list[Part] = []
    full = True
    with _new_text(folder, EVAL_NAME) as eval_file, ExitStack() as opened:
        for path in files:
            for document in documents(path, split):
                if document.identity() < below:
                    _write_document(eval_file, evaluation, document)
                    continue
                if full:
                    opened.close()
                    part = Part(name=f"part-{len(parts):05d}")
                    parts.append(part)
                    file = opened.enter_context(_new_text(folder, part.name))
                _write_document(file, part, document)
                full = part.documents > 1 and part.bytes >= 4 * PART_BYTES
            full = not parts or (part.documents > 1 and part.bytes >= PART_BYTES)
    if len(parts) > 1 and parts[-1].documents == 1:
        last = parts.pop()
        with (folder / f"{last.name}.txt").open("rb") as text, ExitStack() as opened:
            shutil.copyfileobj(text, opened.enter_context(_new_text(folder, parts[-1].name, "ab")))
        parts[-1] = Part(name=parts[-1].name, **_sum(parts[-1], last))
    return parts, evaluation


def _sum(*parts: Part) -> dict[str, int]:
    counts = [{k: v for k, v in asdict(part).items() if k != "name"} for part in parts]
    return {name: sum(count[name] for count in counts) for name in counts[0]}


@contextmanager
def _new_text(folder: Path, name: str, mode: str = "wb") -> Iterator[IO[bytes]]:
    """Open a part's text; at the end it is on the disk."""
    with (folder / f"{name}.txt").open(mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True, kw_only=True)
class PartJob:
    """A worker's input, to turn one part into a spool."""

    text: Path
    spool: Path
    vocab: Path
    lowercase: bool
    masking: MaskingOptions
    keep: int | None = None
    """Keep this many of the shuffled samples: MLPerf's evaluation takes the first 10,000."""


_tokenizers: dict[tuple[Path, int, bool], BertTokenizer] = {}


def make_part(job: PartJob) -> dict[str, Any]:
    """Tokenise one part, create its samples and save them.

    Returns the ``statistics`` and the ``implementations``: ``"masking: c"`` or
    ``"masking: python: <why>"``, and the same for tokenization.
    """
    key = (job.vocab, job.vocab.stat().st_mtime_ns, job.lowercase)
    if key not in _tokenizers:  # a worker keeps its tokenizer, and the words it has learned
        _tokenizers[key] = BertTokenizer(read_vocab(job.vocab), lowercase=job.lowercase)
    tokenizer = _tokenizers[key]
    text, sentences = tokenize(job.text, tokenizer)
    samples, implementation = create_samples(text, tokenizer.special, job.masking)
    if job.keep is not None and job.keep < len(samples):
        samples = samples.take(np.arange(job.keep))
    save_spool(job.spool, samples)
    statistics = Statistics(
        documents=len(text.documents) - 1,
        sentences=sentences,
        wordpieces=len(text.ids),
        unknown=int((text.ids == tokenizer.unk).sum()),
        **count_samples(samples),
    )
    implementations = [f"masking: {implementation}", f"tokenization: {tokenizer.implementation}"]
    return {"statistics": asdict(statistics), "implementations": implementations}


def count_samples(samples: Samples) -> dict[str, int]:
    """Return the part of :class:`Statistics` that depends on the samples alone."""
    return {
        "samples": len(samples),
        "tokens": int(samples.offsets[-1]),
        "masked": int(samples.masked_offsets[-1]),
        "random_next": int(samples.next_sentence_labels.sum()),
    }


def tokenize(path: Path, tokenizer: BertTokenizer) -> tuple[TokenizedText, int]:
    """Return a part's text as ids, and its number of sentences.

    Sentences without a token, and documents without a sentence, are left out.
    """
    ids, counts, owners = [], [], []
    document = 0
    with path.open(encoding="utf-8", newline="\n") as file:
        while lines := [line.rstrip("\n") for line in islice(file, _LINES)]:
            flat, each = tokenizer.encode_lines(lines)
            blank = np.fromiter((not line for line in lines), bool, len(lines))
            owner = document + np.cumsum(blank)
            document = int(owner[-1])
            keep = each > 0
            ids.append(flat)
            counts.append(each[keep])
            owners.append(owner[keep])
    if not ids:
        empty = np.zeros(1, np.int64)
        return TokenizedText(ids=np.zeros(0, np.int32), sentences=empty, documents=empty), 0
    lengths, owner = np.concatenate(counts), np.concatenate(owners)
    _, per_document = np.unique(owner, return_counts=True)
    text = TokenizedText(
        ids=np.concatenate(ids),
        sentences=from_lengths(lengths),
        documents=from_lengths(per_document),
    )
    return text, len(lengths)
