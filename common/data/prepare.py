# SPDX-License-Identifier: Apache-2.0
"""`bertbench data prepare`: from text to HDF5 files that the reader, and MLPerf's loaders, take.

Four steps, each of them finished pieces that survive a restart in OUTPUT/.prepare:

1. split: the text into parts in MLPerf's layout, the held-out documents apart (parts.py);
2. vocabulary: the one given, or one trained on the parts;
3. parts: tokenise and create samples, one process a part (masking.py: MLPerf's procedure);
4. shards: all samples in one random order over all shards (spool.py), the evaluation set, and a
   manifest with parameters, hashes, counts and statistics, which is written last.

The result depends on the parameters and the text alone, not on processes or restarts.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.data.corpus import input_files
from common.data.masking import MaskingOptions
from common.data.parts import (
    EVAL_NAME,
    HoldOut,
    Part,
    PartJob,
    PartResult,
    Statistics,
    make_part,
    split_text,
)
from common.data.schema import write_fixed, write_varlen
from common.data.spool import Mixture, open_spool
from common.data.tokenization import read_vocab, train_vocab
from common.data.track import track
from common.errors import BadInput
from common.files import file_sha256

FORMAT = "bertbench.dataset/1"
MANIFEST = "manifest.json"
EVAL_FILE = "eval_set_uncompressed/part_eval_10k.hdf5"
EVAL_SAMPLES = 10_000
SAMPLES_PER_SHARD = 65_536
VOCAB_TEXT_BYTES = 256_000_000
"""Text a vocabulary is trained on: parts spread evenly over the whole, up to this much."""

Format = Literal["varlen", "fixed"]
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Everything that decides the result; the defaults of the procedure are MLPerf's."""

    text: tuple[Path, ...]
    output: Path
    vocab: Path | None = None
    train_vocab: int | None = None
    lowercase: bool = True
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    format: Format = "varlen"
    num_shards: int | None = None
    eval_fraction: float = 0.02
    num_eval_articles: int | None = None
    licence: str | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if (self.vocab is None) == (self.train_vocab is None):
            raise BadInput("give either --vocab vocab.txt or --train_vocab N, and not both")
        if not 0 <= self.eval_fraction < 1:
            raise BadInput(f"--eval_fraction {self.eval_fraction} must be at least 0 and below 1")
        for name in ("num_shards", "num_eval_articles", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name} {value} must be at least 1")
        if not self.text:
            raise BadInput("name the text: --text PATH...")


def plan(options: PrepareOptions) -> dict[str, Any]:
    """What :func:`prepare` would read and write; checks the inputs and writes nothing."""
    files = input_files(options.text)
    return {
        "output": str(options.output),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "vocabulary": (
            f"{len(read_vocab(options.vocab))} tokens of {options.vocab}"
            if options.vocab
            else f"{options.train_vocab} tokens, trained on the text"
        ),
        "processes": _processes(options),
        "parameters": _parameters(options),
    }


def prepare(options: PrepareOptions) -> dict[str, Any]:
    """Build the data set, or what an interrupted run left to do; returns the manifest.

    A folder that holds the finished result of the same parameters and text is left as it is.
    Raises BadInput when it holds something else, naming the difference and the fix.
    """
    started = time.monotonic()
    files = input_files(options.text)
    work = options.output / ".prepare"
    identity = {"parameters": _parameters(options), "inputs": _inputs(files)}
    done = _claim(options.output, work, identity)
    if done is not None:
        return done
    parts, evaluation = _split(options, files, work)
    _vocabulary(options, parts, work)
    results = _make_parts(options, parts, evaluation, work)
    eval_result = results.pop(EVAL_NAME) if evaluation.documents else PartResult()
    shards = _write_shards(options, parts, results, eval_result, work)
    total = Statistics()
    for result in results.values():
        total.add(result.statistics)
    manifest = {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "licence": options.licence
        or "not stated: samples contain the text, so its licence and attribution apply",
        **identity,
        "vocab": {
            "size": len(read_vocab(options.output / "vocab.txt")),
            "sha256": file_sha256(options.output / "vocab.txt"),
            "source": "given" if options.vocab else "trained on the text",
        },
        "masking_implementation": sorted({result.masking for result in results.values()}),
        "train": _described(total),
        "eval": _described(eval_result.statistics),
        "files": shards,
        "seconds": round(time.monotonic() - started, 1),
    }
    _write_json(options.output / MANIFEST, manifest)
    shutil.rmtree(work)
    return manifest


def _parameters(options: PrepareOptions) -> dict[str, Any]:
    """What has to be equal for pieces of two runs to fit together."""
    return {
        **asdict(options.masking),
        "format": options.format,
        "num_shards": options.num_shards,
        "lowercase": options.lowercase,
        "eval_fraction": None if options.num_eval_articles else options.eval_fraction,
        "num_eval_articles": options.num_eval_articles,
        "train_vocab": options.train_vocab,
        "vocab_sha256": file_sha256(options.vocab) if options.vocab else None,
    }


def _inputs(files: Sequence[Path]) -> list[dict[str, Any]]:
    with track("hash input files", len(files)) as advance:
        found = []
        for path in files:
            size = path.stat().st_size
            found.append({"name": path.name, "bytes": size, "sha256": file_sha256(path)})
            advance(1)
    return found


def _claim(output: Path, work: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest if all is done; else make ``work`` ours, new or to be continued."""
    for path in (output / MANIFEST, work / "identity.json"):
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        differences = _differences(found, identity)
        if differences:
            raise BadInput(
                f"{output} holds data made with other settings ({'; '.join(differences)}): "
                f"choose another --output, or delete that folder"
            )
        if path.name == MANIFEST:
            return dict(found)
    if not work.is_dir():
        if output.is_dir() and any(output.iterdir()):
            raise BadInput(f"{output} is not empty: choose another --output, or empty that folder")
        work.mkdir(parents=True)
    _write_json(work / "identity.json", identity)
    return None


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old, new = found.get("parameters", {}), wanted["parameters"]
    result = [
        f"{name} {old.get(name)!r} there, {new.get(name)!r} asked"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if found.get("inputs") != wanted["inputs"]:
        result.append("other text")
    return result


def _split(options: PrepareOptions, files: list[Path], work: Path) -> tuple[list[Part], Part]:
    record = work / "split.json"
    if record.is_file():
        saved = json.loads(record.read_text())
        return [Part(**part) for part in saved["parts"]], Part(**saved["eval"])
    held_out = HoldOut.fraction(options.eval_fraction)
    if options.num_eval_articles:
        with track("choose held-out articles", len(files)) as advance:
            held_out = HoldOut.count(files, options.num_eval_articles, advance)
    with track("split text", len(files)) as advance:
        parts, evaluation = split_text(files, work / "text", held_out, advance)
    if not parts:
        raise BadInput(
            f"no document is left to train on ({evaluation.documents} held out): give more text, "
            f"or a smaller --eval_fraction or --num_eval_articles"
        )
    if held_out.below and not evaluation.documents:
        raise BadInput(
            f"none of the {sum(part.documents for part in parts)} documents was held out for "
            f"evaluation: raise --eval_fraction, or set it to 0 to do without"
        )
    _write_json(record, {"parts": [asdict(part) for part in parts], "eval": asdict(evaluation)})
    return parts, evaluation


def _vocabulary(options: PrepareOptions, parts: Sequence[Part], work: Path) -> None:
    target = options.output / "vocab.txt"
    if target.is_file():
        return
    if options.vocab:
        content = options.vocab.read_bytes()
        read_vocab(options.vocab)
    else:
        assert options.train_vocab is not None
        step = -(-sum(part.bytes for part in parts) // VOCAB_TEXT_BYTES)
        lines = [
            line
            for part in parts[::step]
            for line in (work / "text" / f"{part.name}.txt").read_text("utf-8").split("\n")
        ]
        with track("train vocabulary", 1) as advance:
            tokens = train_vocab(lines, options.train_vocab, lowercase=options.lowercase)
            advance(1)
        content = ("\n".join(tokens) + "\n").encode()
    _write_bytes(target, content)


def _make_parts(
    options: PrepareOptions, parts: Sequence[Part], evaluation: Part, work: Path
) -> dict[str, PartResult]:
    """Results by part name, those of an earlier run included."""
    results: dict[str, PartResult] = {}
    jobs: dict[str, PartJob] = {}
    for part in [*parts, *([evaluation] if evaluation.documents else [])]:
        record = work / f"{part.name}.json"
        if record.is_file():
            saved = json.loads(record.read_text())
            results[part.name] = PartResult(
                statistics=Statistics(**saved["statistics"]), masking=saved["masking"]
            )
            continue
        jobs[part.name] = PartJob(
            text=work / "text" / f"{part.name}.txt",
            spool=work / "samples" / part.name,
            vocab=options.output / "vocab.txt",
            lowercase=options.lowercase,
            masking=options.masking,
            keep=EVAL_SAMPLES if part is evaluation else None,
        )
    with track("create samples, parts", len(jobs)) as advance:
        for name, result in _each(make_part, jobs, _processes(options)):
            _write_json(work / f"{name}.json", asdict(result))
            results[name] = result
            advance(1)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardJob:
    work: Path
    target: Path
    spools: tuple[Path, ...]
    number: int | None
    """Which shard of the mixture; None for the evaluation set, which is its spool as it is."""
    format: Format
    masking: MaskingOptions


def _write_shard(job: _ShardJob) -> dict[str, Any]:
    if job.number is None:
        samples = open_spool(job.spools[0])
    else:
        samples = Mixture.load(job.work).shard(job.number, job.spools)
    if job.format == "varlen":
        write_varlen(job.target, samples)
    else:
        limits = job.masking
        write_fixed(job.target, samples, limits.max_seq_length, limits.max_predictions_per_seq)
    return {
        "samples": len(samples),
        "bytes": job.target.stat().st_size,
        "sha256": file_sha256(job.target),
    }


def _write_shards(
    options: PrepareOptions,
    parts: Sequence[Part],
    results: dict[str, PartResult],
    eval_result: PartResult,
    work: Path,
) -> dict[str, Any]:
    """Name, samples, bytes and sha256 of each file written."""
    # A part of the result may be empty, for example when every sentence lacks a token.
    sizes = [results[part.name].statistics.samples for part in parts]
    total = sum(sizes)
    count = options.num_shards or max(1, -(-total // SAMPLES_PER_SHARD))
    if count > total:
        raise BadInput(f"--num_shards {count} is more than the {total} samples: give fewer")
    Mixture.draw(sizes, count, options.masking.random_seed).save(work)
    job = partial(_ShardJob, work=work, format=options.format, masking=options.masking)
    spools = tuple(work / "samples" / part.name for part in parts)
    names = {
        f"{count}_shards_uncompressed/part_{number}_of_{count}.hdf5": number
        for number in range(count)
    }
    jobs = {
        name: job(target=options.output / name, spools=spools, number=number)
        for name, number in names.items()
    }
    if eval_result.statistics.samples:
        jobs[EVAL_FILE] = job(
            target=options.output / EVAL_FILE,
            spools=(work / "samples" / EVAL_NAME,),
            number=None,
        )
    record = work / "shards.json"
    written = json.loads(record.read_text()) if record.is_file() else {}
    left = {name: shard for name, shard in jobs.items() if name not in written}
    with track("write shards", len(left)) as advance:
        for name, result in _each(_write_shard, left, _processes(options)):
            written[name] = result
            _write_json(record, written)
            advance(1)
    return {name: written[name] for name in jobs}


def _each(
    work: Callable[[Job], Result], jobs: dict[str, Job], processes: int
) -> Iterator[tuple[str, Result]]:
    """Do all jobs, in this process or in several; results come as they are ready."""
    if processes == 1 or len(jobs) < 2:
        yield from ((name, work(job)) for name, job in jobs.items())
        return
    # Not fork: the tokenizer's and torch's threads would not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(work, job): name for name, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _processes(options: PrepareOptions) -> int:
    return options.processes or len(os.sched_getaffinity(0))


def _described(statistics: Statistics) -> dict[str, Any]:
    """Counts, and the ratios that tell whether a data set is as it should be; None without data."""
    s = statistics
    ratios = {
        "mean_length": s.tokens / s.samples if s.samples else None,
        "masked_fraction": s.masked / s.tokens if s.tokens else None,
        "random_next_fraction": s.random_next / s.samples if s.samples else None,
        "unknown_fraction": s.unknown / s.wordpieces if s.wordpieces else None,
    }
    rounded = {name: None if x is None else round(x, 6) for name, x in ratios.items()}
    return {**asdict(s), **rounded}


def _write_json(path: Path, content: Any) -> None:
    _write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def _write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
