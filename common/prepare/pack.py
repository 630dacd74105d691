# SPDX-License-Identifier: Apache-2.0
"""`bertbench data pack`: the samples that a run needs, from MLPerf's 537 GiB, in a few GiB.

A run converges after 2.3 to 2.8 million of the 156.7 million samples, and stops at 4.5 million.
Pack draws that many at random, each at most once, from fixed, varlen or packed files, and writes
them in random order as varlen files beside the evaluation set. At MLPerf's mean length of 254
tokens a sample takes 1.06 kB instead of 3.68 kB: 4.5 million are 4.8 GB (4.4 GiB). Every sample
read is checked on the way. One input file is in memory at a time in each process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.reader import count, read
from bertbench.common.data.samples import Samples
from bertbench.common.data.schema import write_varlen
from bertbench.common.data.shards import DataRoot, locate, quick_hash
from bertbench.common.errors import BadInput
from bertbench.common.files import write_atomic
from bertbench.common.prepare.build import (
    WORK,
    ShardLayout,
    alone,
    claim,
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
from bertbench.common.prepare.spool import save_spool
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

    files: tuple[Path, ...]
    spool: Path
    take: int | None
    seed: tuple[int, int]
    limits: Limits


def plan(options: PackOptions) -> dict[str, Any]:
    """Return samples and sizes before and after, the latter estimated from real rows.

    Writes no output. Raises BadInput when the source has no such data or too few samples.
    """
    return _plan(options, locate(options.data_root).train_files)[0]


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
    source = locate(options.data_root)
    output = options.output
    names = ("samples", "seed", "num_shards", "max_seq_length", "max_predictions_per_seq")
    identity = {
        "parameters": {name: getattr(options, name) for name in (*names, "vocab_size")},
        "inputs": {"dataset_hash": quick_hash([*source.train_files, *source.eval_files])},
    }
    finished = claim(output, identity)
    if finished is not None:
        return finished
    with alone(output):
        return _build(options, source, identity, started)


def _build(
    options: PackOptions, source: DataRoot, identity: dict[str, Any], started: float
) -> dict[str, Any]:
    output = options.output
    before, sizes = _plan(options, source.train_files)
    draws = _draws(options, source, sizes, before["samples_after"])
    processes = options.processes or processes_for(before["bytes_before"], PROCESS_BYTES)
    results = each_recorded(_draw, draws, processes, output / WORK, "draw samples, files", _spool)
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
        train=Statistics.total(results[name] for name in train_names).described(),
        eval=Statistics(**results.get(EVAL_NAME, {})).described(),
        files=written,
    )


def _draws(
    options: PackOptions, source: DataRoot, sizes: list[int], wanted: int
) -> dict[str, _Draw]:
    """Return what to draw of each training file that gives samples, and of the evaluation set."""
    # How many each file gives is drawn first, so that files can be read independently.
    generator = np.random.Generator(np.random.PCG64(options.seed))
    takes = generator.multivariate_hypergeometric(sizes, wanted, method="marginals")

    folder, limits = options.output / WORK / "samples", options.limits()
    draws: dict[str, _Draw] = {}
    for number, (path, take) in enumerate(zip(source.train_files, takes, strict=True)):
        if take:
            name, seed = f"file-{number:05d}", (options.seed, number)
            draws[name] = _Draw((path,), folder / name, int(take), seed, limits)
    if source.eval_files:
        files = tuple(source.eval_files)
        draws[EVAL_NAME] = _Draw(files, folder / EVAL_NAME, None, (0, 0), limits)
    return draws


def _spool(job: _Draw) -> Path:
    return job.spool


def _draw(job: _Draw) -> dict[str, int]:
    samples = Samples.concatenate([read(path, job.limits) for path in job.files])
    if job.take is not None:
        generator = np.random.Generator(np.random.PCG64(job.seed))
        samples = samples.take(generator.permutation(len(samples))[: job.take])
    save_spool(job.spool, samples)
    return count_samples(samples)
