# SPDX-License-Identifier: Apache-2.0
"""`bertbench data check`: validate a data set and report its statistics.

Every row of every file goes through the checking reader (hdf5.py). Across files the check finds
shards that are missing or differ from the manifest, samples that occur again, in the same or in
another shard (MLPerf v2.1's shuffle script made all shards identical, and accuracy stopped at
0.62), and evaluation samples in the training set. This takes 16 bytes of memory a sample.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.samples import IntArray, Samples, places
from bertbench.common.data.shards import Kind, dataset_hash, locate
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256
from bertbench.common.prepare.build import each, processes_for, read_manifest
from bertbench.common.prepare.pack import PROCESS_BYTES
from bertbench.common.prepare.spool import cut
from bertbench.common.prepare.track import tracked

MAX_REPEATED = 0.01
"""Share of a file's samples that may occur before: short documents repeat by chance."""

_HASH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """The data to check and its limits."""

    data_root: Positional[Path]
    """Folder that `bertbench data prepare` or `pack` made, or MLPerf's."""
    max_seq_length: int | None = None
    """Default: the manifest's, else 512."""
    max_predictions_per_seq: int | None = None
    """Default: the manifest's, else 76."""
    vocab_size: int | None = None
    """Default: that of the manifest, else of vocab.txt, else 30522."""
    processes: int | None = None
    """Default: one a core, fewer for little data."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong."""

    file: str
    """Name under the data root; empty for a problem of several files."""
    message: str
    """Dataset and row where they apply, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a check."""

    statistics: dict[str, Any]
    problems: list[Problem]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _FileResult:
    """One file's content as numbers; without samples when ``error`` says why."""

    error: str | None = None
    sha256: str | None = None
    tokens: int = 0
    longest: int = 0
    random_next: int = 0
    labels: IntArray
    """int64 [vocab], how often each token is a label."""
    shown: IntArray
    """int64 [vocab], how often each token is at a masked position."""
    kept: int = 0
    """Masked positions that show their label."""
    samples: IntArray
    """uint64 [N], a hash of each sample."""
    texts: IntArray
    """uint64 [N], a hash of each sample's unmasked tokens."""


def check(options: CheckOptions) -> Report:
    """Read all files once and report; raises BadInput when there is no data set."""
    root = options.data_root
    found = locate(root)
    manifest = read_manifest(root)
    limits = _limits(options, manifest)
    kinds: dict[Kind, list[Path]] = {"train": found.train_files, "eval": found.eval_files}
    paths = {str(path): path for files in kinds.values() for path in files}
    size = sum(path.stat().st_size for path in paths.values())
    processes = options.processes or processes_for(size, PROCESS_BYTES)
    examine = partial(_examine, limits=limits, with_sha256=bool(manifest))
    results = dict(tracked(each(examine, paths, processes), "check files", len(paths)))
    problems = [
        Problem(_name(Path(name), root), result.error)
        for name, result in results.items()
        if result.error
    ]
    problems += _against_manifest(root, manifest, results)
    problems += _missing_shards(root, found.train_files)
    statistics: dict[str, Any] = {"limits": asdict(limits)}
    vocab = root / "vocab.txt"
    names = read_vocab(vocab) if vocab.is_file() else []
    for kind, files in kinds.items():
        good = {_name(p, root): results[str(p)] for p in files if not results[str(p)].error}
        problems += _repeated(good)
        statistics[kind] = {
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "hash": dataset_hash(files) if files else None,
            **_summary(list(good.values()), names),
        }
    problems += _leaked(root, found.eval_files, found.train_files, results)
    return Report(statistics=statistics, problems=problems)


def plan(options: CheckOptions) -> dict[str, Any]:
    """Return which files :func:`check` would read against which limits; reads none."""
    found = locate(options.data_root)
    limits = _limits(options, read_manifest(options.data_root))
    return {
        "train_files": len(found.train_files),
        "eval_files": len(found.eval_files),
        "bytes": sum(p.stat().st_size for p in (*found.train_files, *found.eval_files)),
        "limits": asdict(limits),
    }


def _limits(options: CheckOptions, manifest: dict[str, Any]) -> Limits:
    """Return limits from flags, else the manifest, else vocab.txt, else MLPerf's values."""
    parameters = manifest.get("parameters", {})
    vocab = options.data_root / "vocab.txt"
    vocab_size = options.vocab_size or manifest.get("vocab", {}).get("size")
    if not vocab_size and vocab.is_file():
        vocab_size = len(read_vocab(vocab))
    masked = options.max_predictions_per_seq or parameters.get("max_predictions_per_seq")
    known = {
        "max_seq_length": options.max_seq_length or parameters.get("max_seq_length"),
        "max_predictions": masked,
        "vocab_size": vocab_size,
    }
    return Limits(**{name: value for name, value in known.items() if value})


def _examine(path: Path, limits: Limits, with_sha256: bool) -> _FileResult:
    size = limits.vocab_size
    zeros, none = np.zeros(size, np.int64), np.zeros(0, np.uint64)
    try:
        sha256 = file_sha256(path) if with_sha256 else None
        samples = read(path, limits)
    except BadInput as error:
        return _FileResult(error=str(error), labels=zeros, shown=zeros, samples=none, texts=none)
    shown = samples.input_ids[_masked_at(samples)]
    hashes, texts = _hashes(samples)
    return _FileResult(
        sha256=sha256,
        tokens=int(samples.offsets[-1]),
        longest=int(samples.lengths.max()),
        random_next=int(samples.next_sentence_labels.sum()),
        labels=np.bincount(samples.masked_labels, minlength=size),
        shown=np.bincount(shown, minlength=size),
        kept=int((shown == samples.masked_labels).sum()),
        samples=hashes,
        texts=texts,
    )


def _masked_at(samples: Samples) -> IntArray:
    """Return the indices of the masked positions into the flat tokens."""
    return samples.masked_positions + np.repeat(samples.offsets[:-1], samples.masked_counts)


def _hashes(samples: Samples) -> tuple[IntArray, IntArray]:
    """Return hashes modulo 2**64 of each sample and of each sample's unmasked tokens.

    A sum of values times random weights, one for each place (Lemire and Kaser, 2014), which numpy
    is fast at. Values differ by less than 2**16, so two samples that differ have equal hashes with
    a chance below 2**-47.
    """
    longest = int(samples.lengths.max())
    draw = np.random.Generator(np.random.PCG64(0)).integers
    token, position, label = draw(1 << 64, size=(3, longest), dtype=np.uint64)
    last = draw(1 << 64, size=3, dtype=np.uint64)
    hashes, texts = [], []
    for start in range(0, len(samples), _HASH_ROWS):
        part = cut(samples, start, min(start + _HASH_ROWS, len(samples)))
        weights = token[places(part.offsets)]
        ids = _sums((part.input_ids.astype(np.uint64) + 1) * weights, part.offsets)
        rank = places(part.masked_offsets)
        labels = part.masked_labels.astype(np.uint64)
        masked = part.masked_positions * position[rank] + (labels + 1) * label[rank]
        one = ids + _sums(masked, part.masked_offsets)
        one += part.split * last[0] + part.next_sentence_labels.astype(np.uint64) * last[1]
        change = labels - part.input_ids[_masked_at(part)]  # modulo 2**64, as everything here
        hashes.append(one)
        texts.append(ids + _sums(change * token[part.masked_positions], part.masked_offsets))
    return np.concatenate(hashes), np.concatenate(texts)


def _sums(values: IntArray, offsets: IntArray) -> IntArray:
    """Return the sum of each piece; pieces may be empty."""
    total = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=total[1:])
    return total[offsets[1:]] - total[offsets[:-1]]


def _repeated(files: dict[str, _FileResult]) -> list[Problem]:
    """Return files with too many samples that occur in an earlier file, or earlier in the same."""
    if not files:
        return []
    names = list(files)
    sizes = [len(result.samples) for result in files.values()]
    owner = np.repeat(np.arange(len(names)), sizes)
    first = np.concatenate([[0], np.cumsum(sizes)])
    hashes = np.concatenate([result.samples for result in files.values()])
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    again, before = order[same + 1], order[same]
    problems = []
    for number, name in enumerate(names):
        mine = np.flatnonzero(owner[again] == number)
        if len(mine) <= MAX_REPEATED * sizes[number]:
            continue
        example = mine[again[mine].argmin()]
        row, other = again[example] - first[number], owner[before[example]]
        message = (
            f"{len(mine):,} of {sizes[number]:,} samples occur before, for example row "
            f"{row} is row {before[example] - first[other]} of {names[other]}: the files hold "
            f"the same samples, make them again with `bertbench data prepare`"
        )
        problems.append(Problem(name, message))
    return problems


def _leaked(
    root: Path, held_out: Sequence[Path], train: Sequence[Path], results: dict[str, _FileResult]
) -> list[Problem]:
    """Return evaluation files with samples whose text is trained on."""
    known = [results[str(path)].texts for path in train]
    problems = []
    for path in held_out:
        texts = results[str(path)].texts
        seen = np.zeros(len(texts), bool)
        for some in known:
            seen |= np.isin(texts, some)
        if seen.sum() > MAX_REPEATED * len(texts):
            message = (
                f"{seen.sum():,} of {len(texts):,} samples have the text of a training sample, "
                f"row {seen.argmax()} first: hold other documents out"
            )
            problems.append(Problem(_name(path, root), message))
    return problems


def _against_manifest(
    root: Path, manifest: dict[str, Any], results: dict[str, _FileResult]
) -> list[Problem]:
    """Return files that differ from the manifest or are missing from either side."""
    if not manifest:
        return []
    listed = manifest.get("files", {})
    present = {_name(Path(path), root): result for path, result in results.items()}
    absent, extra = listed.keys() - present.keys(), present.keys() - listed.keys()
    problems = [Problem(name, "is in the manifest, but missing") for name in sorted(absent)]
    problems += [Problem(name, "is not in the manifest: remove it") for name in sorted(extra)]
    for name in sorted(present.keys() & listed.keys()):
        result, want = present[name], listed[name]
        if result.error:
            continue
        if len(result.samples) != want["samples"]:
            message = f"has {len(result.samples)} samples, the manifest says {want['samples']}"
            problems.append(Problem(name, message))
        elif result.sha256 != want["sha256"]:
            message = f"has sha256 {result.sha256}, the manifest says {want['sha256']}"
            problems.append(Problem(name, message))
    return problems


def _missing_shards(root: Path, files: Sequence[Path]) -> list[Problem]:
    """Return gaps in ``part_<i>_of_<n>``, which count from 0."""
    found: dict[int, set[int]] = {}
    for path in files:
        match = re.search(r"part_(\d+)_of_(\d+)", path.name)
        if match:
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    problems = []
    for count, numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            message = f"{len(missing)} of {count} shards are missing: {shown}; copy them again"
            problems.append(Problem(_name(files[0].parent, root), message))
    return problems


def _summary(results: Sequence[_FileResult], names: Sequence[str]) -> dict[str, Any]:
    """Return counts and ratios over valid files; None where a denominator is 0."""
    samples = sum(len(result.samples) for result in results)
    tokens = sum(result.tokens for result in results)
    if not samples:
        return {"samples": 0}
    labels = np.sum([result.labels for result in results], axis=0)
    shown = np.sum([result.shown for result in results], axis=0)
    masked = int(labels.sum())
    most = int(labels.argmax())
    hashes = np.concatenate([result.samples for result in results])
    return {
        "samples": samples,
        "repeated_samples": samples - len(np.unique(hashes)),
        "tokens": tokens,
        "mean_length": tokens / samples,
        "longest": max(result.longest for result in results),
        "masked": masked,
        "masked_fraction": masked / tokens,
        "mask_token_fraction": int(shown.max()) / masked if masked else None,
        "kept_fraction": sum(r.kept for r in results) / masked if masked else None,
        "random_next_fraction": sum(r.random_next for r in results) / samples,
        "majority_token": names[most] if most < len(names) else str(most),
        "majority_accuracy": int(labels[most]) / masked if masked else None,
    }


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
