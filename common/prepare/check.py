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

from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.identity import DataSet, signature
from bertbench.common.data.plausible import (
    MASKED_LM_PROB,
    MAX_REPEATED,
    Counts,
    findings,
    hashes,
)
from bertbench.common.data.reader import read
from bertbench.common.data.samples import IntArray
from bertbench.common.data.shards import COPY_OF, MANIFEST, Kind, copies, locate
from bertbench.common.data.tokenization import read_vocab
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256
from bertbench.common.prepare.build import each, processes_for, read_manifest
from bertbench.common.prepare.pack import PROCESS_BYTES
from bertbench.common.prepare.track import tracked

PARAMETERS = ("max_seq_length", "max_predictions_per_seq", "masked_lm_prob")
"""Of the manifest's, those that a check uses."""


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
    longest: int = 0
    counts: Counts
    samples: IntArray
    """uint64 [N], a hash of each sample."""
    texts: IntArray
    """uint64 [N], a hash of each sample's unmasked tokens."""


def check(options: CheckOptions) -> Report:
    """Read all files once and report; raises BadInput when there is no data set."""
    root = options.data_root
    found = locate(root)
    manifest = _manifest(root)
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
    twice = copies(list(paths.values()), by_name=True)
    problems += [
        Problem(_name(path, root), f"{COPY_OF} {_name(first, root)}: remove one of them")
        for path, first in twice.items()
    ]
    statistics: dict[str, Any] = {"limits": asdict(limits)}
    vocab = root / "vocab.txt"
    names = read_vocab(vocab) if vocab.is_file() else []
    for kind, files in kinds.items():
        good = {_name(p, root): results[str(p)] for p in files if not results[str(p)].error}
        problems += _repeated({n: r for n, r in good.items() if root / n not in twice})
        problems += _implausible(root, files, list(good.values()), manifest)
        identity = DataSet(signatures={p: signature(p) for p in files}, checksums={}).identity()
        if files and identity.hash is None:
            problems.append(Problem("", f"{kind}: {identity.note}"))
        statistics[kind] = {
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "hash": identity.hash if files else None,
            "hash_kind": identity.kind if files else None,
            **_summary(list(good.values()), names),
        }
    problems += _leaked(root, found.eval_files, found.train_files, results)
    return Report(statistics=statistics, problems=problems)


def plan(options: CheckOptions) -> dict[str, Any]:
    """Return which files :func:`check` would read against which limits; reads none."""
    found = locate(options.data_root)
    limits = _limits(options, _manifest(options.data_root))
    return {
        "train_files": len(found.train_files),
        "eval_files": len(found.eval_files),
        "bytes": sum(p.stat().st_size for p in (*found.train_files, *found.eval_files)),
        "limits": asdict(limits),
    }


def _manifest(root: Path) -> dict[str, Any]:
    """Return the manifest, {} without one; raises BadInput where its values are of other types."""
    manifest = read_manifest(root)
    try:
        parts = (dict(manifest.get(name) or {}) for name in ("parameters", "vocab", "files"))
        parameters, vocab, files = parts
        numbers = [vocab.get("size"), *(parameters.get(name) for name in PARAMETERS)]
        sound = all(n is None or 0 < n <= 1 << 31 for n in numbers) and all(
            isinstance(one["samples"], int) and isinstance(one["sha256"], str)
            for one in files.values()
        )
    except (TypeError, ValueError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise BadInput(f"{root / MANIFEST} is damaged: build the data set again")
    return manifest


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
    try:
        samples = read(path, limits)  # first: what is no shard is refused at its beginning
        sha256 = file_sha256(path) if with_sha256 else None  # not from a cache: disks forget
    except (BadInput, OSError) as error:
        none = np.zeros(0, np.uint64)
        return _FileResult(error=str(error), counts=Counts(), samples=none, texts=none)
    one, texts = hashes(samples)
    return _FileResult(
        sha256=sha256,
        longest=int(samples.lengths.max()),
        counts=Counts.of(samples, limits),
        samples=one,
        texts=texts,
    )


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


def _implausible(
    root: Path, files: Sequence[Path], results: Sequence[_FileResult], manifest: dict[str, Any]
) -> list[Problem]:
    """Return what MLPerf's procedure, with the manifest's parameters, does not give."""
    if not results:
        return []
    prob = manifest.get("parameters", {}).get("masked_lm_prob", MASKED_LM_PROB)
    total = Counts.total([result.counts for result in results])
    where = _name(files[0].parent, root)
    return [Problem(where, one.text) for one in findings(total, prob)]


def _summary(results: Sequence[_FileResult], names: Sequence[str]) -> dict[str, Any]:
    """Return counts and ratios over valid files; None where a denominator is 0."""
    if not results:
        return {"samples": 0}
    counts = Counts.total([result.counts for result in results])
    samples, tokens, masked = counts.samples, counts.tokens, counts.masked
    most = int(counts.labels.argmax())
    whole = np.concatenate([result.samples for result in results])
    return {
        "samples": samples,
        "repeated_samples": samples - len(np.unique(whole)),
        "tokens": tokens,
        "mean_length": tokens / samples,
        "longest": max(result.longest for result in results),
        "masked": masked,
        "masked_fraction": masked / tokens,
        "mask_token_fraction": int(counts.shown.max()) / masked if masked else None,
        "kept_fraction": counts.kept / masked if masked else None,
        "random_next_fraction": counts.random_next / samples,
        "majority_token": names[most] if most < len(names) else str(most),
        "majority_accuracy": int(counts.labels[most]) / masked if masked else None,
    }


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
