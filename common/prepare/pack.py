# SPDX-License-Identifier: Apache-2.0
"""`bertbench data pack`: the samples that a run needs, from MLPerf's 537 GiB, in a few GiB.

A run converges after 2.3 to 2.8 million of the 156.7 million samples, and stops at 4.5 million.
Pack draws that many at random, each at most once, from fixed, varlen or packed files, and writes
them in random order as varlen files beside the evaluation set. At MLPerf's mean length of 254
tokens a sample takes 1.06 kB instead of 3.68 kB: 4.5 million are 4.8 GB (4.4 GiB). Every sample
read is checked on the way, and what a run refuses of shards is refused here, since it could not be
seen in their mixture. One input file is in memory at a time in each process.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.identity import DataSet, signature
from bertbench.common.data.plausible import (
    ENOUGH,
    MAX_REPEATED,
    Counts,
    hashes,
    refuse_impossible,
)
from bertbench.common.data.reader import count, read
from bertbench.common.data.samples import IntArray, Samples
from bertbench.common.data.schema import write_varlen
from bertbench.common.data.shards import DataRoot, locate, refuse_copies
from bertbench.common.errors import BadInput
from bertbench.common.files import write_atomic
from bertbench.common.prepare.build import (
    WORK,
    ShardLayout,
    alone,
    claim,
    each,
    each_recorded,
    faults_in_one_line,
    finish,
    processes_for,
    read_manifest,
    require_fewer,
    require_positive,
    write_shards,
)
from bertbench.common.prepare.parts import EVAL_NAME, Statistics, count_samples
from bertbench.common.prepare.spool import open_spool, save_spool
from bertbench.common.prepare.track import tracked

PROCESS_BYTES = 200_000_000
"""HDF5 that is worth a separate process."""

ESTIMATE_ROWS = 4096
"""Samples of the first file that the size is estimated from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """The source of the samples and the size of the result."""

    data_root: Positional[Path]
    """MLPerf's data: the folder with 2048_shards_uncompressed and eval_set_uncompressed, or one of
    the later layouts."""
    output: Path
    """Folder to make."""
    samples: int | None = 4_500_000
    """How many training samples to draw; None takes all. MLPerf's runs stop at 4.5 million."""
    seed: int = 12345
    """Of the draw and of the order."""
    num_shards: int | None = None
    """Files to write; default: at most 65,536 samples in each."""
    max_seq_length: int = 512
    """Longer samples are an error."""
    max_predictions_per_seq: int = 76
    """Samples with more masked tokens are an error."""
    vocab_size: int = 30522
    """Higher ids are an error."""
    processes: int | None = None
    """Default: one a core, fewer for little data. The result does not depend on it."""

    def __post_init__(self) -> None:
        require_positive(self, "samples", "num_shards", "processes")

    def limits(self) -> Limits:
        """Return the limits that samples are checked against."""
        return Limits(
            max_seq_length=self.max_seq_length,
            max_predictions=self.max_predictions_per_seq,
            vocab_size=self.vocab_size,
        )


@dataclass(frozen=True, slots=True)
class _Draw:
    """``take`` random samples of ``files``, in random order; None: all, in their order."""

    where: Path
    """For messages."""
    files: tuple[Path, ...]
    sha256s: tuple[str | None, ...]
    """That the source's manifest has of them."""
    spool: Path
    take: int | None
    seed: tuple[int, int]
    limits: Limits


def plan(options: PackOptions) -> dict[str, Any]:
    """Return samples and sizes before and after, the latter estimated from real rows.

    Writes no output. Raises BadInput when the source has no such data or too few samples.
    """
    return _plan(options, _source(options).train_files)[0]


def _source(options: PackOptions) -> DataRoot:
    """Return the files to read; raises BadInput for second copies of others."""
    source = locate(options.data_root)
    refuse_copies([*source.train_files, *source.eval_files])
    return source


def _plan(options: PackOptions, files: Sequence[Path]) -> tuple[dict[str, Any], list[int]]:
    sizes = [count(path) for path in tracked(files, "count samples, files", len(files))]
    total = sum(sizes)
    wanted = total if options.samples is None else options.samples
    if wanted > total:
        raise BadInput(
            f"{options.data_root} has {total:,} samples, fewer than --samples {wanted:,}: "
            f"give {total} or less, or None for all"
        )
    require_fewer(options.num_shards, wanted)
    with tempfile.TemporaryDirectory() as folder:
        few = read(files[0], options.limits(), first=ESTIMATE_ROWS)
        write_varlen(Path(folder) / "few.hdf5", few)
        per_sample = (Path(folder) / "few.hdf5").stat().st_size / len(few)
    content = {
        "files": len(files),
        "samples_before": total,
        "bytes_before": sum(path.stat().st_size for path in files),
        "samples_after": wanted,
        "bytes_after_estimate": round(per_sample * wanted),
        "bytes_per_sample_estimate": round(per_sample, 1),
    }
    return content, sizes


def pack(options: PackOptions) -> dict[str, Any]:
    """Build the compact set, or what an interrupted run left to do; returns the manifest.

    Raises BadInput when the source has no such data or too few samples, or the output folder
    holds something else.
    """
    with faults_in_one_line(options.output):
        return _pack(options)


def _pack(options: PackOptions) -> dict[str, Any]:
    started = time.monotonic()
    source = _source(options)
    opened = DataSet.open([*source.train_files, *source.eval_files])
    output = options.output
    names = ("samples", "seed", "num_shards", "max_seq_length", "max_predictions_per_seq")
    identity = {
        "parameters": {name: getattr(options, name) for name in (*names, "vocab_size")},
        "inputs": _inputs(opened),
    }
    finished = claim(output, identity)
    if finished is not None:
        return finished
    with alone(output):
        return _build(options, source, opened, identity, started)


def _inputs(opened: DataSet) -> dict[str, Any]:
    """Return what names the source's content: a manifest's word is not taken for it."""
    found = replace(opened, checksums={}).identity()
    if found.hash is None:
        raise BadInput(f"{found.note}")
    inputs = {"dataset_hash": found.hash, "hash_kind": found.kind}
    if found.kind == "sampled":  # which can miss a change, but not its time
        times = [state[:2] for state in opened.signatures.values()]
        inputs["times"] = hashlib.sha256(repr(times).encode()).hexdigest()
    return inputs


def _build(
    options: PackOptions,
    source: DataRoot,
    opened: DataSet,
    identity: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    output = options.output
    before, sizes = _plan(options, source.train_files)
    draws = _draws(options, source, opened, sizes, before["samples_after"])
    processes = options.processes or processes_for(before["bytes_before"], PROCESS_BYTES)
    results = each_recorded(_draw, draws, processes, output / WORK, "draw samples, files", _spool)
    for path, was in opened.signatures.items():
        if signature(path) != was:
            raise BadInput(f"{path} changed while it was read: pack again into another --output")
    notes = _repeats(draws, processes)
    train_names = [name for name in draws if name != EVAL_NAME]
    written = write_shards(
        output,
        ShardLayout(num_shards=options.num_shards),
        [draws[name].spool for name in train_names],
        [results[name]["samples"] for name in train_names],
        draws[EVAL_NAME].spool if EVAL_NAME in draws else None,
        seed=options.seed,
        processes=processes,
    )
    for small in (source.bert_config, options.data_root / "vocab.txt"):
        if small is not None and small.is_file():
            write_atomic(output / small.name, small.read_text("utf-8"))
    return finish(
        output,
        started,
        licence=read_manifest(options.data_root).get(
            "licence", "that of the source: MLPerf's data is English Wikipedia's text, CC BY-SA 3.0"
        ),
        **identity,
        vocab={"size": options.vocab_size},
        before=before,
        notes=notes,
        train=Statistics.total(results[name] for name in train_names).described(),
        eval=Statistics(**results.get(EVAL_NAME, {})).described(),
        files=written,
    )


def _draws(
    options: PackOptions, source: DataRoot, opened: DataSet, sizes: list[int], wanted: int
) -> dict[str, _Draw]:
    """Return what to draw of each training file that gives samples, and of the evaluation set."""
    # How many each file gives is drawn first, so that files can be read independently.
    generator = np.random.Generator(np.random.PCG64(options.seed))
    takes = generator.multivariate_hypergeometric(sizes, wanted, method="marginals")

    folder, limits = options.output / WORK / "samples", options.limits()
    draws: dict[str, _Draw] = {}

    def draw(
        name: str, where: Path, files: Sequence[Path], take: int | None, seed: tuple[int, int]
    ) -> None:
        draws[name] = _Draw(
            where=where,
            files=tuple(files),
            sha256s=tuple(opened.unverified(path) for path in files),
            spool=folder / name,
            take=take,
            seed=seed,
            limits=limits,
        )

    for number, (path, take) in enumerate(zip(source.train_files, takes, strict=True)):
        if take:
            draw(f"file-{number:05d}", path, [path], int(take), (options.seed, number))
    if source.eval_files:
        draw(EVAL_NAME, source.eval_files[0].parent, source.eval_files, None, (0, 0))
    return draws


def _spool(job: _Draw) -> Path:
    return job.spool


def _draw(job: _Draw) -> dict[str, int]:
    files = zip(job.files, job.sha256s, strict=True)
    samples = Samples.concatenate([read(path, job.limits, sha256=known) for path, known in files])
    refuse_impossible(f"{job.where}", Counts.of(samples, job.limits))
    if job.take is not None:
        generator = np.random.Generator(np.random.PCG64(job.seed))
        samples = samples.take(generator.permutation(len(samples))[: job.take])
    save_spool(job.spool, samples)
    return count_samples(samples)


def _repeats(draws: Mapping[str, _Draw], processes: int) -> list[str]:
    """Return which drawn samples occur before; raises BadInput where they are most of a file.

    16 bytes a sample are in memory.
    """
    spools = {name: job.spool for name, job in draws.items()}
    found = dict(tracked(each(_hashes, spools, processes), "compare samples, files", len(spools)))
    held_out = found.pop(EVAL_NAME, None)
    names = [name for name in draws if name in found]  # in the order of the files
    again = _again(np.concatenate([found[name][0] for name in names]))
    ends = np.cumsum([len(found[name][0]) for name in names])
    before = "of the samples drawn occur before, in it or in another shard"
    doubts = [
        (draws[name].where, part, before)
        for name, part in zip(names, np.split(again, ends[:-1]), strict=True)
    ]
    if held_out is not None:
        where = draws[EVAL_NAME].where
        trained = np.concatenate([found[name][1] for name in names])
        doubts.append((where, _again(held_out[0]), "of the samples occur before"))
        leaks = np.isin(held_out[1], trained)
        doubts.append((where, leaks, "of the samples have the text of a training sample"))
    notes = []
    for where, seen, what in doubts:
        text = f"{where}: {seen.mean():.1%} {what}; `bertbench data check` examines all data"
        if seen.mean() > 0.5 and len(seen) >= ENOUGH:
            raise BadInput(text)
        if seen.mean() > MAX_REPEATED:
            notes.append(text)
    return notes


def _hashes(spool: Path) -> tuple[IntArray, IntArray]:
    return hashes(open_spool(Samples, spool))


def _again(values: IntArray) -> IntArray:
    """Return bool [n], whether a value occurs before."""
    seen = np.ones(len(values), bool)
    seen[np.unique(values, return_index=True)[1]] = False
    return seen
