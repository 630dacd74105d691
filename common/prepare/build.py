# SPDX-License-Identifier: Apache-2.0
"""What building a data set has in common, from text or from other HDF5 files.

A build works in OUTPUT/.work, where finished pieces survive a restart, and writes OUTPUT's manifest
last: a folder with a manifest is complete.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from bertbench.common.data.schema import write_fixed, write_varlen
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, host_cores, write_atomic
from bertbench.common.prepare.spool import Mixture, open_spool
from bertbench.common.prepare.track import track

FORMAT = "bertbench.dataset/1"
MANIFEST = "manifest.json"
WORK = ".work"
EVAL_FILE = "eval_set_uncompressed/part_eval_10k.hdf5"
SAMPLES_PER_SHARD = 65_536

Format = Literal["varlen", "fixed"]
Job = TypeVar("Job")
Result = TypeVar("Result")


def claim(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest when ``output`` is complete; else make its work folder ours, new or old.

    ``identity`` has ``parameters`` and ``inputs``: pieces of two runs fit together only when both
    are equal. Raises BadInput when the folder holds something else, naming the difference.
    """
    work = output / WORK
    for path in (output / MANIFEST, work / "identity.json"):
        if not path.is_file():
            continue
        found = read_json(path)
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
    write_json(work / "identity.json", identity)
    return None


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old, new = found.get("parameters", {}), wanted["parameters"]
    result = [
        f"{name} {old.get(name)!r} there, {new.get(name)!r} asked"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if found.get("inputs") != wanted["inputs"]:
        result.append("other inputs")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How the shards are written."""

    num_shards: int | None = None
    """None: as many as give at most SAMPLES_PER_SHARD each."""
    format: Format = "varlen"
    max_seq_length: int = 512
    max_predictions: int = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardJob:
    work: Path
    target: Path
    spools: tuple[Path, ...]
    number: int | None
    """Which shard of the mixture; None for the evaluation set, which is its spool as it is."""
    layout: ShardLayout


def write_shards(
    output: Path,
    layout: ShardLayout,
    spools: Sequence[Path],
    sizes: Sequence[int],
    evaluation: Path | None,
    *,
    seed: int,
    processes: int,
) -> dict[str, Any]:
    """Mix the samples of ``spools`` (``sizes`` each) into shards, and write the evaluation set.

    Returns samples, bytes and sha256 of each file by its name under ``output``.
    """
    work, total = output / WORK, sum(sizes)
    count = layout.num_shards or max(1, -(-total // SAMPLES_PER_SHARD))
    if count > total:
        raise BadInput(f"--num_shards {count} is more than the {total} samples: give fewer")
    Mixture.draw(sizes, count, seed).save(work)
    sources: dict[str, tuple[tuple[Path, ...], int | None]] = {
        f"{count}_shards_uncompressed/part_{number}_of_{count}.hdf5": (tuple(spools), number)
        for number in range(count)
    }
    if evaluation is not None:
        sources[EVAL_FILE] = ((evaluation,), None)
    record = work / "shards.json"
    written: dict[str, Any] = read_json(record) if record.is_file() else {}
    left = {
        name: _ShardJob(work=work, target=output / name, spools=paths, number=number, layout=layout)
        for name, (paths, number) in sources.items()
        if name not in written
    }
    with track("write shards", len(left)) as advance:
        for name, result in each(_write_shard, left, processes):
            written[name] = result
            write_json(record, written)
            advance(1)
    return {name: written[name] for name in sources}


def _write_shard(job: _ShardJob) -> dict[str, Any]:
    if job.number is None:
        samples = open_spool(job.spools[0])
    else:
        samples = Mixture.load(job.work).shard(job.number, job.spools)
    if job.layout.format == "varlen":
        write_varlen(job.target, samples)
    else:
        write_fixed(job.target, samples, job.layout.max_seq_length, job.layout.max_predictions)
    return {
        "samples": len(samples),
        "bytes": job.target.stat().st_size,
        "sha256": file_sha256(job.target),
    }


def each(
    work: Callable[[Job], Result], jobs: dict[str, Job], processes: int
) -> Iterator[tuple[str, Result]]:
    """Do all jobs, in this process or in several; results come as they are ready."""
    if processes == 1 or len(jobs) < 2:
        yield from ((name, work(job)) for name, job in jobs.items())
        return
    # Not fork: the threads of torch and of the tokenizers library would not survive it.
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(jobs))
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(work, job): name for name, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def processes_for(num_bytes: int, per_process: int) -> int:
    """One process a core, but no more than have ``per_process`` bytes each: starting one costs."""
    return max(1, min(host_cores(), num_bytes // per_process))


def read_json(path: Path) -> Any:
    """A JSON file of ours."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(
            f"{path} is not JSON ({error}): delete {path.parent} and start anew"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write atomically."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")
