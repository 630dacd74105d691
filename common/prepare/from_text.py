# SPDX-License-Identifier: Apache-2.0
"""`bertbench data prepare`: from text to HDF5 files for the reader and for MLPerf's loaders.

Four steps, each made of pieces that survive a restart:

1. split: the text into parts in MLPerf's layout, the held-out documents apart (parts.py);
2. vocabulary: the one given, or one trained on the parts;
3. parts: tokenise and create samples, one process a part (masking.py: MLPerf's procedure);
4. shards: all samples in one random order over all shards (spool.py), the evaluation set, and a
   manifest with parameters, hashes, counts and statistics.

The result depends on the parameters and the text alone, not on processes or restarts.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertbench.common.data.plausible import SIGMAS
from bertbench.common.data.tokenization import LARGEST_VOCAB, read_vocab, train_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, shown, write_atomic
from bertbench.common.prepare.build import (
    WORK,
    Format,
    ShardLayout,
    abandon,
    alone,
    claim,
    each_recorded,
    faults_in_one_line,
    finish,
    processes_for,
    read_json,
    require_fewer,
    require_positive,
    write_json,
    write_shards,
)
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.masking import MaskingOptions
from bertbench.common.prepare.parts import (
    EVAL_NAME,
    PART_BYTES,
    Part,
    PartJob,
    Statistics,
    held_out_below,
    make_part,
    split_text,
)
from bertbench.common.prepare.sentences import Split, splitter
from bertbench.common.prepare.sources import glance, input_files
from bertbench.common.prepare.track import tracked

EVAL_SAMPLES = 10_000
"""MLPerf evaluates on the first 10,000 samples of the held-out text."""

VOCAB_TEXT_BYTES = 256_000_000
"""Text a vocabulary is trained on: parts spread evenly over the whole, up to this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Everything that decides the result; the procedure's defaults are MLPerf's."""

    text: tuple[Path, ...]
    """Text files, archives (.tar.xz, .tar.gz, ...) or folders: one sentence a line with blank lines
    between documents, WikiExtractor's <doc> files, or JSON lines with a "text" field."""
    output: Path
    """Folder to make."""
    split_sentences: str | None = None
    """Code of the text's language (en, de, zh, ...): split each line or paragraph into sentences by
    its rules, with the package sentencex."""
    vocab: Path | None = None
    """A BERT vocab.txt."""
    train_vocab: int | None = None
    """Or train a WordPiece vocabulary of this many tokens on the text."""
    lowercase: bool = True
    """Lower-case and strip accents, as uncased models do."""
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    format: Format = "varlen"
    """Rows of real length, or padded as in MLPerf's first rounds (3.5 times as large)."""
    num_shards: int | None = None
    """Files the training samples are spread over; default: at most 65,536 samples in each."""
    eval_fraction: float = 0.02
    """Share of the documents held out, chosen by a hash of id and title, else of the text."""
    num_eval_articles: int | None = None
    """Hold out this many documents instead (MLPerf: 10,000)."""
    licence: str | None = None
    """Licence and attribution of the text, for the manifest."""
    processes: int | None = None
    """Default: one a core, fewer for little text. The result does not depend on it."""

    def __post_init__(self) -> None:
        if (self.vocab is None) == (self.train_vocab is None):
            raise BadInput("give either --vocab vocab.txt or --train_vocab N, and not both")
        if not 0 <= self.eval_fraction < 1:
            raise BadInput(f"--eval_fraction {self.eval_fraction} must be at least 0 and below 1")
        require_positive(self, "num_shards", "num_eval_articles", "processes")
        if not self.text:
            raise BadInput("name the text: --text PATH...")


def plan(options: PrepareOptions) -> dict[str, Any]:
    """Return what :func:`prepare` would read and write; writes nothing.

    Raises BadInput for text or vocabulary that is absent or damaged.
    """
    files = input_files(options.text)
    for path in files:
        next(documents(path, _split_by(options)[0]), None)  # refuses what is not text
    return {
        "output": str(options.output),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "vocabulary": (
            f"{len(read_vocab(options.vocab))} tokens of {options.vocab}"
            if options.vocab
            else f"{options.train_vocab} tokens, trained on the text"
        ),
        "processes": _processes(options, files),
        "parameters": _parameters(options),
    }


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Build the data set, or what an interrupted run left to do; returns the manifest.

    A folder that holds the finished result of the same parameters and text is left as it is.
    Raises BadInput when it holds something else, naming the difference and the fix.
    """
    with faults_in_one_line(options.output):
        started = time.monotonic()
        files = input_files(options.text)
        before = [path.stat() for path in files]
        for path in files:
            glance(path)  # a hash takes minutes where a file is large, and no text
        identity = {"parameters": _parameters(options), "inputs": _inputs(files)}
        finished = claim(options.output, identity)
        if finished is not None:
            return finished
        with alone(options.output):
            try:
                return _build(options, files, before, identity, started)
            except BadInput:
                abandon(options.output)  # it would refuse corrected parameters
                raise


def _build(
    options: PrepareOptions,
    files: list[Path],
    before: Sequence[os.stat_result],
    identity: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    output, work = options.output, options.output / WORK
    parts, evaluation = _split(options, files, work)
    for path, was in zip(files, before, strict=True):
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) != (was.st_size, was.st_mtime_ns):
            raise BadInput(f"{shown(path)} changed while it was read: prepare the data again")
    _vocabulary(options, parts, work)
    processes = _processes(options, files)
    jobs = _jobs(options, parts, evaluation, work)
    results = each_recorded(
        make_part, jobs, processes, work, "create samples, parts", lambda job: job.spool
    )
    statistics = {name: result["statistics"] for name, result in results.items()}
    held_out = Statistics(**statistics.pop(EVAL_NAME, {}))
    train = Statistics.total(statistics.values())
    notes = [*_doubts("training text", train), *_doubts("held-out text", held_out)]
    size = len(read_vocab(output / "vocab.txt"))
    if options.train_vocab and size < options.train_vocab:
        notes.append(
            f"the text gives {size:,} tokens of vocabulary, not the {options.train_vocab:,} asked "
            f"for: `bertbench run RECIPE --vocab_size {size}` makes a model of that size"
        )
    written = write_shards(
        output,
        ShardLayout(
            num_shards=options.num_shards,
            format=options.format,
            max_seq_length=options.masking.max_seq_length,
            max_predictions=options.masking.max_predictions_per_seq,
        ),
        [work / "samples" / part.name for part in parts],
        [statistics[part.name]["samples"] for part in parts],
        work / "samples" / EVAL_NAME if held_out.samples else None,
        seed=options.masking.random_seed,
        processes=processes,
    )
    return finish(
        output,
        started,
        licence=options.licence
        or "not stated: samples contain the text, so its licence and attribution apply",
        **identity,
        vocab={
            "size": size,
            "sha256": file_sha256(output / "vocab.txt"),
            "source": "given" if options.vocab else "trained on the text",
        },
        implementations=sorted({i for r in results.values() for i in r["implementations"]}),
        notes=notes,
        train=train.described(),
        eval=held_out.described(),
        files=written,
    )


def _processes(options: PrepareOptions, files: Sequence[Path]) -> int:
    size = sum(path.stat().st_size for path in files)
    return options.processes or processes_for(size, PART_BYTES)


def _split_by(options: PrepareOptions) -> tuple[Split | None, str | None]:
    """Return the function that splits lines into sentences, and its description."""
    language = options.split_sentences
    return (None, None) if language is None else splitter(language)


def _parameters(options: PrepareOptions) -> dict[str, Any]:
    return {
        **asdict(options.masking),
        "part_bytes": PART_BYTES,
        "format": options.format,
        "num_shards": options.num_shards,
        "lowercase": options.lowercase,
        "split_sentences": _split_by(options)[1],
        "eval_fraction": None if options.num_eval_articles else options.eval_fraction,
        "num_eval_articles": options.num_eval_articles,
        "train_vocab": options.train_vocab,
        "vocab_sha256": _vocab_sha256(options.vocab) if options.vocab else None,
    }


def _vocab_sha256(path: Path) -> str:
    if path.stat().st_size > LARGEST_VOCAB:
        raise BadInput(
            f"--vocab {shown(path)} is larger than {LARGEST_VOCAB >> 20} MiB: no vocab.txt"
        )
    return file_sha256(path)


def _inputs(files: Sequence[Path]) -> list[dict[str, Any]]:
    found: dict[str, Path] = {}
    inputs = []
    for path in tracked(files, "hash input files", len(files)):
        size, sha256 = path.stat().st_size, file_sha256(path)
        if size and found.setdefault(sha256, path) is not path:
            raise BadInput(
                f"{shown(path)} and {shown(found[sha256])} are the same text: name it once "
                f"(--dupe_factor repeats text)"
            )
        inputs.append({"name": path.name, "bytes": size, "sha256": sha256})
    return inputs


def _doubts(what: str, statistics: Statistics) -> list[str]:
    """Return what is unusual in the samples; raises BadInput where they are of no use."""
    found = statistics.doubts()
    for doubt, useless in found:
        if useless:
            raise BadInput(f"{what}: {doubt}")
    return [f"{what}: {doubt}" for doubt, _ in found]


def _jobs(
    options: PrepareOptions, parts: Sequence[Part], evaluation: Part, work: Path
) -> dict[str, PartJob]:
    return {
        part.name: PartJob(
            text=work / "text" / f"{part.name}.txt",
            spool=work / "samples" / part.name,
            vocab=options.output / "vocab.txt",
            lowercase=options.lowercase,
            masking=options.masking,
            keep=EVAL_SAMPLES if part is evaluation else None,
        )
        for part in [*parts, *([evaluation] if evaluation.documents else [])]
    }


def _split(options: PrepareOptions, files: list[Path], work: Path) -> tuple[list[Part], Part]:
    record = work / "split.json"
    if record.is_file():
        saved = read_json(record)
        return [Part(**part) for part in saved["parts"]], Part(**saved["eval"])
    below = int(options.eval_fraction * 2**64)
    if options.num_eval_articles:
        read = tracked(files, "choose held-out articles", len(files))
        below = held_out_below(read, options.num_eval_articles, _split_by(options)[0])
    read = tracked(files, "split text", len(files))
    parts, evaluation = split_text(read, work / "text", below, _split_by(options)[0])
    _require_names(options, files, sum(part.documents for part in parts), evaluation.documents)
    _require_pairs(options, parts, evaluation)
    require_fewer(
        options.num_shards, options.masking.dupe_factor * sum(part.sentences for part in parts)
    )
    write_json(record, {"parts": [asdict(part) for part in parts], "eval": asdict(evaluation)})
    return parts, evaluation


def _require_names(options: PrepareOptions, files: Sequence[Path], train: int, held: int) -> None:
    """Raise BadInput where far from as many documents as asked are held out for like names."""
    total = train + held
    wanted = options.num_eval_articles or options.eval_fraction * total
    if not wanted or (abs(held - wanted) <= SIGMAS * math.sqrt(wanted) and 0 < held < total):
        return
    split = _split_by(options)[0]
    named = Counter(one.key for path in files for one in documents(path, split) if one.key)
    if named and len(named) <= 0.5 * named.total():
        key, times = named.most_common(1)[0]
        raise BadInput(
            f"{named.total()} documents have {len(named)} different names ({shown(key, 40)!r} is "
            f"that of {times}), by which they are held out: give each its own id or title, or "
            f"leave both out: then its text counts"
        )


def _require_pairs(options: PrepareOptions, parts: Sequence[Part], evaluation: Part) -> None:
    """Raise BadInput where no pairs of sentences of one document, and of two, can be made."""
    train = sum(part.documents for part in parts)
    total = train + evaluation.documents
    if not total:
        raise BadInput(f"{shown(options.text[0])} holds no text: name a folder or file with text")
    if total == 1:
        raise BadInput(
            "the text is one document: separate documents with a blank line, since a random next "
            "sentence comes from another document"
        )
    lone = sum(part.lone for part in parts) + evaluation.lone
    if lone == total:
        raise BadInput(
            f"each of the {total} documents has one sentence, so that every next sentence would be "
            f"random: write the sentences of a document on consecutive lines, and a blank line "
            f"between documents only"
        )
    if not parts:
        raise BadInput(
            f"no document is left to train on ({evaluation.documents} held out): give more text, "
            f"or a smaller --eval_fraction or --num_eval_articles"
        )
    wanted = options.num_eval_articles or options.eval_fraction
    if wanted and not evaluation.documents:
        raise BadInput(
            f"none of the {train} documents was held out for evaluation: raise --eval_fraction, "
            f"or set it to 0"
        )
    for name, number, single in (
        ("train on", train, sum(part.lone for part in parts)),
        ("evaluate on", evaluation.documents, evaluation.lone),
    ):
        if number and (number == 1 or single == number):
            raise BadInput(
                f"{number} of the {total} documents are to {name}, {single} of one sentence, "
                f"which gives next sentences of one kind only: give more text, or another "
                f"--eval_fraction (0: none held out)"
            )


def _vocabulary(options: PrepareOptions, parts: Sequence[Part], work: Path) -> None:
    target = options.output / "vocab.txt"
    if target.is_file():
        return
    if options.vocab:
        tokens = read_vocab(options.vocab)
    else:
        assert options.train_vocab is not None
        step = -(-sum(part.bytes for part in parts) // VOCAB_TEXT_BYTES)
        lines = [
            line
            for part in parts[::step]
            for line in (work / "text" / f"{part.name}.txt").read_text("utf-8").split("\n")
        ]
        for size in tracked([options.train_vocab], "train vocabulary", 1):
            tokens = train_vocab(lines, size, lowercase=options.lowercase)
    write_atomic(target, "\n".join(tokens) + "\n")
