# SPDX-License-Identifier: Apache-2.0
"""Files of weights: which formats are read, what to do about the others, and where a file keeps
its tensors. No code in a file runs: ``.pt`` is read with ``weights_only``.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.model.naming import unwrapped

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Of files that hold weights."""
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "model_state", "net", "weights")
"""Keys under which training software keeps a model's tensors, the more usual first."""
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_TF = "is a TensorFlow checkpoint: convert it to PyTorch first"
_SPLIT = "is split over several files: load it with its library and save it as one"
_FORMATS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights: run git lfs pull"),
    (b"\x89HDF", "is an HDF5 (Keras) file: convert it to PyTorch first"),
    (b"GGUF", "is a GGUF file: give the PyTorch weights that it was made from"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"<", "is a web page, not weights: download the file itself"),
)
_SUFFIXES = {
    ".onnx": "is an ONNX graph: give the PyTorch weights that it was exported from",
    ".index": _TF, ".meta": _TF, ".msgpack": "is a Flax file: convert it to PyTorch first",
    ".json": "is no file of weights: name the weights beside it",
}  # fmt: skip
# The word embedding, which every BERT has: ours, and all others'.
_WORD = re.compile(
    r"(|.*?\.)(?:encoder\.embeddings\.word|(?:bert\.)?embeddings\.word_embeddings)\.weight"
)
_FAMILIES = {
    "roberta": "RoBERTa", "distilbert": "DistilBERT", "albert": "ALBERT", "electra": "ELECTRA",
    "deberta": "DeBERTa", "mpnet": "MPNet", "longformer": "Longformer", "mobilebert": "MobileBERT",
    "convbert": "ConvBERT", "squeezebert": "SqueezeBERT", "nezha": "NEZHA", "ernie": "ERNIE",
    "roformer": "RoFormer", "layoutlm": "LayoutLM", "esm": "ESM", "luke": "LUKE",
}  # fmt: skip


def why_no_file(path: Path) -> str | None:
    """Return why ``path`` does not lead to a file of weights, and the fix; None where it does."""
    if path.is_file():
        return None
    if path.with_name(f"{path.name}.index").is_file():
        return f"{_TF} ({path.name}.index and its data)"
    if not path.is_dir():
        return "is not a plain file" if path.exists() else "does not exist (.pt or .safetensors)"
    inside = sorted(file.name for file in path.iterdir())
    if any(name.endswith(".index.json") for name in inside):
        return f"is a folder whose model {_SPLIT}"
    found = [name for name in inside if name.endswith(SUFFIXES)]
    named = f", such as {shown(found[0], 60)}" if found else ""
    return f"is a folder: name the weights file inside it{named} (.pt or .safetensors)"


def read_weights(path: Path) -> tuple[Mapping[Any, Any], str]:
    """Return a file's mapping of names to values, and the keys that it was found under.

    Raises BadInput, with the fix, for anything else.
    """
    why = why_no_file(path) or _why_not_read(path)
    if why is not None:
        raise BadInput(f"{path}: {why}")
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    inner = _unwrap(raw) if isinstance(raw, Mapping) else None
    if inner is None:
        raise BadInput(f"{path}: holds no dictionary of tensors, at the top or under 'model'")
    return inner


def is_weight(value: object) -> bool:
    """Return whether a value is a dense floating-point tensor of at least one dimension."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
        return False
    return value.dtype in _DTYPES and value.ndim > 0


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor [...] holds, in float32, neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(x.float().isfinite()) for x in tensor.aminmax())


def find_prefix(path: Path, names: Iterable[str]) -> str:
    """Return the modules around a BERT in a file's ``names``, such as ``model.``; "" for none.

    Raises BadInput for several BERTs, and for another family of models.
    """
    found = sorted({m[1] for name in names if (m := _WORD.fullmatch(unwrapped(name)))})
    for prefix in found:
        family = _FAMILIES.get(prefix.rstrip(".").rpartition(".")[2].lower())
        if family is not None:
            raise BadInput(
                f"{path}: holds the weights of a model of the family {family} ({shown(prefix)}): "
                f"it computes other numbers than a BERT. Give a BERT's"
            )
    if len(found) > 1:
        raise BadInput(
            f"{path}: holds {len(found)} BERTs ({', '.join(shown(p or 'bert.') for p in found[:4])}"
            f"): save the one that is meant in a file of its own"
        )
    return found[0] if found else ""


def _why_not_read(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            begin = stream.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if path.name.endswith(".index.json") or re.search(r"-\d{5}-of-\d{5}\.", path.name):
        return _TF if ".data-" in path.name else _SPLIT
    for magic, why in _FORMATS:
        if begin.startswith(magic):
            return why
    return _TF if ".data-0" in path.name else _SUFFIXES.get(path.suffix)


def _unwrap(raw: Mapping[Any, Any], depth: int = 0) -> tuple[Mapping[Any, Any], str] | None:
    """Return the mapping of tensors below known keys, or ``raw`` where none leads to one."""
    named = [key for key in WRAPPERS if key in raw and not is_weight(raw[key])]
    for key in named:
        inner = (
            _unwrap(raw[key], depth + 1) if isinstance(raw[key], Mapping) and depth < 4 else None
        )
        if inner is not None and any(map(is_weight, inner[0].values())):
            return inner[0], f"{key}.{inner[1]}".rstrip(".")
    if not named:
        return raw, ""
    inner = raw[named[0]]
    return (inner, named[0]) if isinstance(inner, Mapping) else None


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged header makes it raise almost anything
        raise BadInput(
            f"{path}: not a complete safetensors file ({shown(error)}); fetch it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        # Mapped, so that an optimizer's state in the same file costs no memory.
        mmap = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path}: holds more than plain tensors, or is not a PyTorch file (convert a "
            f"TensorFlow checkpoint first). Nothing in it was executed. If you trust its origin, "
            f"save only the weights: "
            f"torch.save({{'model': model.state_dict()}}, file), or a .safetensors file"
        ) from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        reason = shown(error) or type(error).__name__
        raise BadInput(
            f"{path}: cannot be read as a PyTorch weights file ({reason}); it may be cut short: "
            f"fetch it again"
        ) from error
