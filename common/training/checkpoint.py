# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: complete or absent, and verified before any byte is interpreted.

One checkpoint is one folder::

    step_00000123/
        model.safetensors optimizer.safetensors rank_0000.safetensors ...   one per tensor group
        state.json        everything else
        manifest.json     sha256 and size of each of the files above, and of itself

Without pickle, a stranger's checkpoint cannot run code. safetensors does not notice a flipped bit
in its payload, hence the checksums. torch.distributed.checkpoint has neither: its ``.metadata`` is
a pickle. Rank 0 writes all files; state of other ranks is gathered first (random generators, into
``rank_group(rank)``).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, parse_json, read_bytes, read_json, shown, sync
from bertbench.common.training import saved

FORMAT_VERSION = 1
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_FILE = re.compile(r"state\.json|[a-z][a-z0-9_]*\.safetensors")
"""The names that a manifest may list: nothing elsewhere, and nothing that is not ours."""
_PARTIAL = ".partial-"

Groups = dict[str, dict[str, Tensor]]
Saved = tuple[Groups, dict[str, Any]]
"""The tensors by group and name, and the state that is not tensors."""


def rank_group(rank: int) -> str:
    """Return the name of the tensor group for ``rank`` alone."""
    return f"rank_{rank:04d}"


def step_of(path: Path) -> int:
    """Return the step of the checkpoint folder ``path``; raise BadInput for another name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise BadInput(f"{path}: not a checkpoint, which is a folder step_XXXXXXXX")
    return int(match[1])


class Checkpoints:
    """The last ``keep`` checkpoints of one run, in ``folder``/step_XXXXXXXX.

    Raises BadInput where ``keep`` is below 1.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise BadInput(f"cannot keep {keep} checkpoints: keep at least 1, or skip checkpoints")
        self.folder, self._keep = folder, keep

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> Path:
        """Write one checkpoint, make it durable, then delete those beyond ``keep``.

        ``tensors`` maps a group (``model``, ``optimizer``, ``rank_group(r)``) to named tensors of
        any shape [...] and device; names that share one tensor share it again when loaded.
        ``state`` must be JSON. Call it on rank 0 only. Raises BadInput when the disk refuses; the
        earlier checkpoints are then untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(stale)
        work = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
        try:
            _write(work, step, tensors, state)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if not isinstance(error, (OSError, SafetensorError)):
                raise
            raise BadInput(
                f"could not write the checkpoint of step {step} to {self.folder}: {error}. Free "
                f"space there, choose another --output_dir, or pass --skip_checkpoint."
            ) from error
        target = self.folder / f"step_{step:08d}"
        if target.exists():  # written before a resume; valid until the new one is in place
            replaced = target.with_suffix(".replaced")
            if replaced.exists():
                shutil.rmtree(replaced)
            target.rename(replaced)
        work.rename(target)
        sync(self.folder)
        self._prune()
        return target

    def available(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return _complete(self.folder)

    def latest(self) -> Path | None:
        """Return the newest complete checkpoint, or None; does not verify it."""
        found = self.available()
        return found[-1] if found else None

    def load(self, path: Path | None = None) -> tuple[Groups, dict[str, Any]]:
        """Verify the checkpoint at ``path`` (default: the latest), then read it (CPU tensors).

        Raises BadInput when anything is missing, cut or changed, before it interprets a byte. The
        message names the file and the newest older checkpoint that is intact.
        """
        chosen = path or self.latest()
        if chosen is None:
            raise BadInput(f"no checkpoint in {self.folder}: start without --resume")
        return load(chosen)

    def _prune(self) -> None:
        found = self.available()
        superseded = [path for path in found if path.suffix]
        kept = [path for path in found if not path.suffix]
        for path in superseded + kept[: -self._keep]:
            # Renamed first: a half-deleted checkpoint must never look complete.
            doomed = path.rename(path.with_name(_PARTIAL + path.name))
            shutil.rmtree(doomed)


def resolve(path: Path) -> Path:
    """Return the newest checkpoint at ``path``.

    ``path`` is a checkpoint, a folder of checkpoints, or a run folder that has one. Raises
    BadInput without any.
    """
    if _NAME.fullmatch(path.name):
        return path
    for folder in (path, path / "checkpoints"):
        try:
            found = _complete(folder)
        except OSError as error:
            raise BadInput(f"{folder}: {error.strerror}: a checkpoint cannot be found") from error
        if found:
            return found[-1]
    raise BadInput(f"no checkpoint in {path}: give a folder step_XXXXXXXX, or one that holds some")


def load(path: Path) -> Saved:
    """Verify and read one checkpoint folder; raises BadInput (see ``Checkpoints.load``)."""
    problem = verify(path)
    if problem:
        raise BadInput(f"{problem}. Nothing was loaded. {_alternative(path)}")
    file = path / "state.json"
    try:
        state = read_json(file)
        groups = {}
        for file in sorted(path.glob("*.safetensors")):
            groups[file.stem] = _read_group(file)
    except (
        OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError, MemoryError,
        RuntimeError,
    ) as error:  # fmt: skip
        reason = shown(error)
        raise BadInput(f"{file}: {reason}. Nothing was loaded. {_alternative(path)}") from error
    return groups, state


def verify(path: Path) -> str | None:
    """Return the damaged file of the checkpoint at ``path`` and its problem, or None if intact."""
    manifest = path / "manifest.json"
    try:
        raw = read_bytes(manifest)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"{manifest}: {reason}; the checkpoint is incomplete"
    files = _listed(raw, path)
    if files is None:
        return f"{manifest}: damaged, or written by an incompatible version"
    unlisted = {file.name for file in path.glob("*.safetensors")} - set(files)
    if unlisted:
        return f"{path / shown(min(unlisted))}: not part of the checkpoint"
    try:  # sizes first: they cost nothing
        for name, expected in files.items():
            file = path / name
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode):
                return f"{file}: not a plain file"
            if found.st_size != expected["bytes"]:
                return f"{file}: has {found.st_size} bytes, expected {expected['bytes']}"
        for name, expected in files.items():
            file = path / name
            if file_sha256(file) != expected["sha256"]:
                return f"{file}: sha256 differs from the manifest's; the content is damaged"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None


def _listed(raw: bytes, path: Path) -> dict[str, Any] | None:
    """Return the files that a manifest lists; None where it is not one, or not of ``path``."""
    try:
        content = parse_json(raw)
        step, files = content["step"], content["files"]
        named = _NAME.fullmatch(path.name)
        whole = raw == _manifest(step, files) and "state.json" in files
        plain = all(
            _FILE.fullmatch(name)
            and type(files[name]["bytes"]) is int
            and type(files[name]["sha256"]) is str
            for name in files
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    of_step = named is None or int(named[1]) == step
    return files if whole and plain and of_step else None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of ``optimizer``: named tensors, and JSON values."""
    full = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"state": {}, "param_groups": []}
    for index, entry in full["state"].items():
        values["state"][str(index)] = _split(entry, f"state.{index}", tensors)
    for index, group in enumerate(full["param_groups"]):
        values["param_groups"].append(_split(group, f"param_groups.{index}", tensors))
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any],
    own: Container[int] | None = None,
) -> None:  # fmt: skip
    """Restore the result of ``flatten_optimizer``: ``tensors`` of any shape [...], and ``values``.

    ``own`` are the indices of the parameters whose state this rank keeps; None: all.
    Raises BadInput when the optimizer has other parameters (another model or grouping) or other
    constants, or a tensor is not the state of its parameter.
    """
    groups = saved.check_groups(values["param_groups"], optimizer.state_dict()["param_groups"])
    found: dict[str, dict[str, Tensor]] = {str(index): {} for index in values["state"]}
    for name, tensor in tensors.items():
        _, _, rest = name.partition("state.")
        index, _, key = rest.partition(".")
        if not key or index not in found:
            raise BadInput(f"the checkpoint's optimizer has an unknown tensor {shown(name)}")
        found[index][key] = tensor
    parameters = [(g, p) for g in optimizer.param_groups for p in g["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, entry in found.items():
        if not index.isdecimal() or str(int(index)) != index or int(index) >= len(parameters):
            raise BadInput(f"the checkpoint's optimizer has a state of {shown(index)}")
        group, parameter = parameters[int(index)]
        expected = saved.expected_moments(group, parameter)
        if expected is None:
            expected = dict.fromkeys(entry, parameter)
        saved.check_tensors(f"optimizer's state {index}", entry, expected)
        if "exp_avg_sq" in expected and (entry["exp_avg_sq"] < 0).any():
            raise BadInput(f"the checkpoint's optimizer has negative squares of {index}")
        if own is None or int(index) in own:
            state[int(index)] = dict(values["state"][index]) | entry
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _split(entry: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors.update({f"{prefix}.{k}": v for k, v in entry.items() if isinstance(v, Tensor)})
    return {k: v for k, v in entry.items() if not isinstance(v, Tensor)}


def _complete(folder: Path) -> list[Path]:
    matches = [
        (int(match[1]), match[2] is None, path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, _, path in sorted(matches)]


def _alternative(path: Path) -> str:
    """Name the newest intact checkpoint older than ``path``."""
    siblings = _complete(path.parent)
    older = siblings[: siblings.index(path)] if path in siblings else siblings
    for candidate in reversed(older):
        if verify(candidate) is None:
            return f"The one before it is intact: --resume {candidate}"
    return "No older checkpoint is intact: start without --resume"


def _write(
    work: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    for group, named in tensors.items():
        assert _GROUP.fullmatch(group), f"{group!r} cannot name a file"
        _save_group(work / f"{group}.safetensors", named)
    (work / "state.json").write_text(
        json.dumps(state, indent=1, sort_keys=True, allow_nan=False) + "\n"
    )
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(work.iterdir())
    }
    (work / "manifest.json").write_bytes(_manifest(step, files))
    for file in work.iterdir():
        sync(file)
    sync(work)


def _manifest(step: int, files: Mapping[str, Any]) -> bytes:
    """Render the manifest in its only valid form, so that comparing bytes finds any change."""
    content: dict[str, Any] = {"format": FORMAT_VERSION, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    text = json.dumps(content | {"sha256": digest}, indent=1, sort_keys=True)
    return f"{text}\n".encode()


def snapshot(groups: Mapping[str, Mapping[str, Tensor]]) -> Groups:
    """Return copies on the host, which later steps leave alone; names of one tensor share one."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    return {
        group: {
            name: copies.setdefault(_view(tensor), tensor.detach().to("cpu", copy=True))
            for name, tensor in named.items()
        }
        for group, named in groups.items()
    }


def _view(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that two tensors share where they are the same memory in the same form."""
    place = tensor.data_ptr() or id(tensor)
    return place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _save_group(file: Path, named: Mapping[str, Tensor]) -> None:
    """Write one group; a second name of the same memory becomes an alias in the metadata."""
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    aliases: dict[str, str] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        view = _view(tensor)
        if tensor.numel() and view in first:
            aliases[name] = first[view]
            continue
        first[view] = name
        # safetensors refuses tensors that share storage: copy parts of one buffer.
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        out[name] = (tensor if whole else tensor.clone()).cpu().contiguous()
    save_file(out, file, metadata={"format": "pt", "aliases": json.dumps(aliases)})


def _read_group(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt", device="cpu") as reader:
        # Cloned: training must not work on a mapped file.
        tensors = {name: reader.get_tensor(name).clone() for name in reader.keys()}  # noqa: SIM118
        aliases = parse_json((reader.metadata() or {}).get("aliases", "{}"))
    return tensors | {name: tensors[source] for name, source in aliases.items()}
