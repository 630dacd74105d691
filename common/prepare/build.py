# SPDX-License-Identifier: Apache-2.0
"""The common parts of building a data set, from text or from other HDF5 files.

A build works in OUTPUT/.work, where finished pieces survive a restart, and writes OUTPUT's manifest
last: a folder with a manifest is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from bertbench.common.data.samples import Samples
from bertbench.common.data.schema import write_fixed, write_varlen
from bertbench.common.data.shards import FORMAT, MANIFEST
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, host_cores, shown, sync, write_atomic
from bertbench.common.files import read_json as read_any_json
from bertbench.common.prepare.spool import Mixture, open_spool, save_spool
from bertbench.common.prepare.track import tracked

WORK = ".work"
EVAL_FILE = "eval_set_uncompressed/part_eval_10k.hdf5"
SAMPLES_PER_SHARD = 65_536
LARGEST_MANIFEST = 256 << 20
"""Bytes of a manifest: each input file takes about 150."""

Format = Literal["varlen", "fixed"]
Job = TypeVar("Job")
Result = TypeVar("Result")


def claim(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest when ``output`` is complete; else make or take over its work folder.

    ``identity`` has ``parameters`` and ``inputs``: pieces of two runs fit together only when both
    are equal. Raises BadInput when the folder holds something else, naming the difference, or files
    that are no longer those of its manifest.
    """
    work = output / WORK
    for path in (output / MANIFEST, work / "identity.json"):
        if not path.is_file():
            continue
        found = read_json(path)
        differences = _differences(found, identity)
        if differences:
            raise BadInput(
                f"{shown(output)} holds data made with other settings ({'; '.join(differences)}): "
                f"choose another --output, or delete that folder"
            )
        if path.name == MANIFEST:
            if damage := find_damage(output, found):
                raise BadInput(
                    f"{damage}: the finished data was damaged: delete {shown(output)}, and run the "
                    f"same command again"
                )
            shutil.rmtree(work, ignore_errors=True)  # of a build that was stopped at its very end
            return found
    if not work.is_dir():
        if output.is_dir() and any(output.iterdir()):
            raise BadInput(
                f"{shown(output)} is not empty: choose another --output, or empty that folder"
            )
        work.mkdir(parents=True)
    write_json(work / "identity.json", identity)
    return None


def find_damage(output: Path, manifest: dict[str, Any]) -> str | None:
    """Return what is wrong with the first file that is not as its ``manifest`` says, or None.

    Reads the files whole where their sizes are right.
    """
    try:
        listed = dict(manifest["files"])
        vocab = manifest["vocab"].get("sha256")
        sums = {name: (one["bytes"], one["sha256"]) for name, one in listed.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{shown(output / MANIFEST)} does not say what its files are"
    if vocab is not None:
        sums["vocab.txt"] = (None, vocab)
    for name, (size, _) in sums.items():
        path = output / name
        if not path.is_file():
            return f"{shown(path)} is missing"
        if size is not None and path.stat().st_size != size:
            return f"{shown(path)} has {path.stat().st_size:,} bytes, its manifest says {size:,}"
    for name, (_, sha256) in sums.items():
        if file_sha256(output / name) != sha256:
            return f"{shown(output / name)} has not the sha256 that its manifest says"
    return None


def finish(output: Path, started: float, **content: Any) -> dict[str, Any]:
    """Write the manifest of ``content``, drop the work folder and return the manifest.

    ``started`` is the ``time.monotonic()`` of the build's start.
    """
    manifest = {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **content,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(output / MANIFEST, manifest)
    shutil.rmtree(output / WORK, ignore_errors=True)  # the data is complete without it
    return manifest


def abandon(output: Path) -> None:
    """Remove the pieces of a build that its own data or options make impossible."""
    for name in (WORK, "vocab.txt", Path(EVAL_FILE).parts[0], "*_shards_uncompressed"):
        for path in output.glob(name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Raise BadInput while another process builds ``output``, whose work folder exists."""
    descriptor = os.open(output / WORK, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadInput(
            f"another process prepares {shown(output)}: wait for it, or choose another --output"
        ) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)


_FIXES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder or file that you may use",
    errno.EPERM: "choose a folder or file that you may use",
    errno.ENOENT: "make that folder or file available again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


@contextlib.contextmanager
def faults_in_one_line(output: Path) -> Iterator[None]:
    """Raise BadInput for a fault of a disk, of memory or of a worker while building ``output``."""
    again = "run the same command again: finished pieces are kept"
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, "check that disk")
        reason = shown(error.strerror or error)
        raise BadInput(
            f"{shown(error.filename or output)}: {reason}: {fix}, and {again}"
        ) from error
    except MemoryError as error:
        raise BadInput(
            f"{shown(output)}: out of memory ({shown(error)}): give fewer --processes, and {again}"
        ) from error
    except BrokenProcessPool as error:
        raise BadInput(
            f"{shown(output)}: a process was killed, most often for want of memory: give fewer "
            f"--processes, and {again}"
        ) from error


def require_positive(options: Any, *names: str) -> None:
    """Raise BadInput for an option of ``names`` that is set and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name} {value} must be at least 1")


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    old, new = found.get("parameters"), wanted["parameters"]
    old = old if isinstance(old, dict) else {}
    result = [
        f"{shown(name, 40)} {shown(repr(old.get(name)), 80)} there, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if (old := found.get("inputs")) != wanted["inputs"]:
        some = (x if isinstance(x, list) else [] for x in (old, wanted["inputs"]))
        maps = ([f for f in x if isinstance(f, dict)] for x in some)
        one, other = ({(str(f.get("name")), str(f.get("sha256"))) for f in x} for x in maps)
        names = ", ".join(sorted({shown(name, 40) for name, _ in one ^ other})[:5])
        result.append(f"other inputs{names and f': {names}'}")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """Number, format and limits of the shards."""

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
    """Which shard of the mixture; None for the evaluation set, an unchanged spool."""
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

    Returns samples, bytes and sha256 of each file by its name under ``output``. Raises BadInput
    for more shards than samples.
    """
    work, total = output / WORK, sum(sizes)
    count = layout.num_shards or max(1, -(-total // SAMPLES_PER_SHARD))
    require_fewer(count, total)
    for left in output.glob("*_uncompressed/.*.tmp"):  # of a process that was killed
        left.unlink()
    save_spool(work / "mixture", Mixture.draw(sizes, count, seed))
    sources: dict[str, tuple[tuple[Path, ...], int | None]] = {
        f"{count}_shards_uncompressed/part_{number}_of_{count}.hdf5": (tuple(spools), number)
        for number in range(count)
    }
    if evaluation is not None:
        sources[EVAL_FILE] = ((evaluation,), None)
    jobs = {
        name: _ShardJob(work=work, target=output / name, spools=paths, number=number, layout=layout)
        for name, (paths, number) in sources.items()
    }
    return each_recorded(
        _write_shard, jobs, processes, work, "write shards", lambda job: job.target
    )


def require_fewer(shards: int | None, samples: int) -> None:
    """Raise BadInput for more shards than there can be samples."""
    if shards is not None and shards > samples:
        raise BadInput(f"--num_shards {shards} is more than the {samples} samples: give fewer")


def _write_shard(job: _ShardJob) -> dict[str, Any]:
    if job.number is None:
        samples = open_spool(Samples, job.spools[0])
    else:
        samples = open_spool(Mixture, job.work / "mixture").shard(job.number, job.spools)
    if job.layout.format == "varlen":
        write_varlen(job.target, samples)
    else:
        write_fixed(job.target, samples, job.layout.max_seq_length, job.layout.max_predictions)
    sync(job.target)
    return {
        "samples": len(samples),
        "bytes": job.target.stat().st_size,
        "sha256": file_sha256(job.target),
    }


def each_recorded(
    work: Callable[[Job], dict[str, Any]],
    jobs: dict[str, Job],
    processes: int,
    folder: Path,
    what: str,
    made: Callable[[Job], Path],
) -> dict[str, dict[str, Any]]:
    """Return the JSON values of each job by its name, those of an earlier run included.

    ``folder`` keeps them in files of the jobs' names. A job whose file or folder, ``made``, is gone
    is done again.
    """
    records = {name: folder / f"{Path(name).name}.json" for name in jobs}
    left = {
        name: job
        for name, job in jobs.items()
        if not (records[name].is_file() and made(job).exists())
    }
    for name, result in tracked(each(work, left, processes), what, len(left)):
        write_json(records[name], result)
    return {name: read_json(path) for name, path in records.items()}


def each(
    work: Callable[[Job], Result], jobs: dict[str, Job], processes: int
) -> Iterator[tuple[str, Result]]:
    """Yield each job's name and result as they are ready, from this process or several."""
    if processes == 1 or len(jobs) < 2:
        yield from ((name, work(job)) for name, job in jobs.items())
        return
    # Not fork: the threads of torch and of the tokenizers library would not survive it.
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(jobs))
    others = {process.pid for process in multiprocessing.active_children()}
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        try:
            with _without_script():
                futures = {pool.submit(work, job): name for name, job in jobs.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid not in others:
                    process.terminate()
            raise


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Start workers that do not run the user's script again: it may lack a __main__ guard."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would wait for work for ever.

    An interrupt from the keyboard is the parent's to report; it ends the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def processes_for(num_bytes: int, per_process: int) -> int:
    """Return one process a core, but at most one for each ``per_process`` bytes."""
    return max(1, min(host_cores(), num_bytes // per_process))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a build; raises BadInput when the file holds none."""
    try:
        content = read_any_json(path, LARGEST_MANIFEST)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise BadInput(
            f"{shown(path)} is not JSON ({shown(error)}): delete {shown(path.parent)} and build it "
            f"again"
        ) from error
    return content


def read_manifest(data_root: Path) -> dict[str, Any]:
    """Return a data set's manifest; empty without one."""
    path = data_root / MANIFEST
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` atomically."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")
