# SPDX-License-Identifier: Apache-2.0
"""The attention masks of a model: one for all layers, or per layer, and per head.

A head's mask is a pattern (any length), bits [n, n], or bits [n] per distance abs(i - j). A mask of
n tokens also serves shorter sequences: a sequence of m tokens has its upper left corner [m, m].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, shown, sync, write_atomic
from bertbench.common.masks.patterns import MAX_LENGTH, Bits, Pattern, parse

SUFFIX = ".json"
"""Of a saved mask; any other text is a pattern."""
FORMAT, VERSION = "bertbench-attention-mask", 1
_MOST = 4096
"""Layers, and heads: the limits of a model (config/limits.py)."""
_LARGEST_TENSORS = 1 << 30
"""Bytes of the file of bits."""

Head = Pattern | Bits
"""One head's mask."""


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """The masks of a model; True where query i may attend to key j.

    Raises BadInput for shapes of other things, and for a query that has no key in a sequence of
    two or more tokens.
    """

    layers: Sequence[Sequence[Head]]
    """Layers (one entry: all the same) of heads (one entry: all the same)."""

    def __post_init__(self) -> None:
        heads = {len(layer) for layer in self.layers}
        if not 0 < len(self.layers) <= _MOST or not 0 < max(heads) <= _MOST or len(heads - {1}) > 1:
            raise BadInput(
                f"an attention mask has 1 to {_MOST} layers of 1 or the same number of heads, not "
                f"{len(self.layers)} layers of {', '.join(map(str, sorted(heads)[:4]))} heads"
            )
        checked: dict[int, Head] = {}  # which keeps them, so that no two have an id
        for at, layer in enumerate(self.layers):
            for index, head in enumerate(layer):
                # A file may name an array a million times.
                if not isinstance(head, Pattern) and id(head) not in checked:
                    _check(head, f"layer {at}, head {index}")
                    checked[id(head)] = head

    # -- the masks --------------------------------------------------------------------------------
    @property
    def heads(self) -> int:
        """The number of heads that differ; 1 where all are the same."""
        return max(map(len, self.layers))

    @cached_property
    def longest(self) -> int | None:
        """The longest sequence that it has bits for; None where it is made of patterns."""
        arrays = [h for heads in self.layers for h in heads if not isinstance(h, Pattern)]
        return min(map(len, arrays), default=None)

    def layer(self, index: int, length: int) -> Bits:
        """Return the mask of a layer for ``length`` n, bool [heads or 1, n, n].

        Raises BadInput for a layer that it lacks, and for a length below 1 or beyond ``longest``.
        """
        if length < 1:
            raise BadInput(f"a mask's length is {length}: give 1 to {self.longest or MAX_LENGTH}")
        if len(self.layers) > 1 and not 0 <= index < len(self.layers):
            raise BadInput(f"the attention mask has {len(self.layers)} layers, none with {index}")
        if self.longest is not None and length > self.longest:
            raise BadInput(
                f"the attention mask is of {self.longest} tokens, and sequences have up to "
                f"{length}: give a mask of that length, or a lower --max_seq_length"
            )
        heads = self.layers[index if len(self.layers) > 1 else 0]
        return np.stack([_bits(head, length) for head in heads])

    def check(self, *, layers: int, heads: int, length: int) -> None:
        """Raise BadInput where it is not for a model of that many layers, heads and tokens."""
        for name, own, wanted in (
            ("layers", len(self.layers), layers),
            ("heads", self.heads, heads),
        ):
            if own not in (1, wanted):
                raise BadInput(
                    f"the attention mask has {own} {name}, the model {wanted}: give a mask for "
                    f"this model, or one that all its {name} share"
                )
        self.layer(0, length)

    # -- its numbers ------------------------------------------------------------------------------
    def nnz(self, length: int) -> float:
        """Return the entries that are True, of n^2: the mean over layers and heads."""
        return float(np.mean([self.layer(at, length).sum((1, 2)).mean() for at in self._all]))

    def sparsity_ratio(self, length: int) -> float:
        """Return 1 - nnz / n^2, the mean over layers and heads (Wang et al. 2022)."""
        return 1 - self.nnz(length) / length**2

    def offsets(self, index: int, length: int) -> Bits | None:
        """Return a layer's bits per distance abs(i - j), bool [heads or 1, n].

        None where a head's mask is not symmetric and the same along each diagonal (Toeplitz).
        """
        bits = self.layer(index, length)
        same = (bits[:, 1:, 1:] == bits[:, :-1, :-1]).all()
        return bits[:, 0] if same and (bits[:, 0] == bits[:, :, 0]).all() else None

    def is_toeplitz(self, length: int) -> bool:
        """Return whether ``offsets`` gives bits for every layer."""
        return all(self.offsets(at, length) is not None for at in self._all)

    def blocks(self, index: int, length: int, block: int) -> Bits:
        """Return which blocks of a layer's mask hold a True, bool [heads or 1, n/block, n/block].

        The last block of a row or column may be cut: n/block is rounded up.
        """
        bits = self.layer(index, length)
        edges = np.arange(0, length, block)
        return np.logical_or.reduceat(np.logical_or.reduceat(bits, edges, 1), edges, 2)

    def blocks_kept(self, length: int, block: int) -> float:
        """Return the share of blocks that hold a True, the mean over layers and heads."""
        return float(np.mean([self.blocks(at, length, block).mean() for at in self._all]))

    @property
    def _all(self) -> range:
        return range(len(self.layers))

    @cached_property
    def text(self) -> str:
        """A description in one line."""
        head = self.layers[0][0]
        if len(self.layers) == 1 == self.heads and isinstance(head, Pattern):
            return head.text
        layers = f"{len(self.layers)} layers" if len(self.layers) > 1 else "all layers the same"
        heads = f"{self.heads} heads" if self.heads > 1 else "all heads the same"
        length = "" if self.longest is None else f", up to {self.longest} tokens"
        return f"{layers}, {heads}{length}"

    @cached_property
    def hash(self) -> str:
        """The sha256 of the content, whatever the file it came from."""
        content, arrays = self.content()
        digests = [hashlib.sha256(np.packbits(a).tobytes()).hexdigest() for a in arrays.values()]
        shapes = [a.shape for a in arrays.values()]
        text = json.dumps([content, shapes, digests], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # -- files ------------------------------------------------------------------------------------
    def content(self) -> tuple[list[list[Any]], dict[str, Bits]]:
        """Return the layers as JSON values, and the arrays that they name, each once."""
        arrays: dict[str, Bits] = {}
        known: dict[tuple[Any, ...], str] = {}
        named: dict[int, tuple[str, Head]] = {}  # by identity, so that each array is read once
        rows: list[list[Any]] = []
        for layer in self.layers:
            rows.append([])
            for head in layer:
                if isinstance(head, Pattern):
                    rows[-1].append(head.full_text)
                    continue
                if id(head) not in named:
                    name = known.setdefault((head.shape, head.tobytes()), str(len(known)))
                    arrays[name] = head
                    named[id(head)] = name, head
                name, _ = named[id(head)]
                rows[-1].append({"bits" if head.ndim == 2 else "offsets": name})
        return rows, arrays

    def save(self, path: Path | str) -> list[Path]:
        """Write ``path`` (.json), and beside it a .safetensors where there are bits; return both.

        Raises BadInput for another suffix, where the second file would replace one that is not a
        mask's, such as a model's weights, and where the files cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path)
        if path.suffix != SUFFIX:
            raise BadInput(f"{shown(path)}: the name of a saved attention mask ends in {SUFFIX}")
        rows, arrays = self.content()
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "layers": rows}
        written = [path]
        try:
            if arrays:
                tensors = path.with_suffix(".safetensors")
                if tensors.exists() and not path.exists():
                    raise BadInput(
                        f"{shown(path)}: its bits would replace {shown(tensors)}: give another name"
                    )
                raw = save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
                tensors.write_bytes(raw)
                sync(tensors)
                written.append(tensors)
                digest = hashlib.sha256(raw).hexdigest()
                content["tensors"] = {"file": tensors.name, "sha256": digest}
            write_atomic(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise BadInput(f"{shown(path)}: cannot be written: {error.strerror}") from error
        return written

    @classmethod
    def load(cls, path: Path) -> AttentionMask:
        """Return a saved mask; raises BadInput for any file that ``save`` did not write."""
        try:
            content = parse_json(read_bytes(path))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError("it is not an attention mask that bertbench saved")
            if content.get("version") != VERSION:
                raise ValueError(f"its version is not {VERSION}: use the bertbench that wrote it")
            if unknown := content.keys() - {"format", "version", "layers", "tensors"}:
                raise ValueError(f"unknown key {shown(min(unknown), 40)!r}")
            arrays = _read_arrays(path, content["tensors"]) if "tensors" in content else {}
            return cls.from_content(content.get("layers"), arrays)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else shown(error)
            raise BadInput(f"attention mask {shown(path)}: {why}") from error
        except BadInput as error:
            raise BadInput(f"attention mask {shown(path)}: {error}") from error

    @classmethod
    def from_content(cls, layers: Any, arrays: Mapping[str, Bits]) -> AttentionMask:
        """Return the mask of a result of ``content``, arrays [n, n] and [n].

        Raises ValueError or BadInput for anything else.
        """
        return cls(_heads(layers, arrays))

    @classmethod
    def of(cls, text: str) -> AttentionMask:
        """Return the mask of a pattern's text, or of a saved file, whose name ends in .json.

        Raises BadInput as ``parse`` and ``load``.
        """
        return cls.load(Path(text)) if text.endswith(SUFFIX) else cls(((parse(text),),))


def _bits(head: Head, length: int) -> Bits:
    """Return one head's mask, [length, length]."""
    if isinstance(head, Pattern):
        return head.bits(length)
    if head.ndim == 2:
        return head[:length, :length]
    at = np.arange(length)
    return head[np.abs(at[:, None] - at)]


def _check(head: Bits, place: str) -> None:
    """Raise BadInput for an array of another shape, or leaves a query without a key."""
    if head.dtype != np.bool_ or head.ndim not in (1, 2) or len(set(head.shape)) != 1:
        raise BadInput(f"{place}: a mask is bool [n, n] or [n], not {head.dtype} {head.shape}")
    if not 0 < len(head) <= MAX_LENGTH:
        raise BadInput(f"{place}: {len(head)} tokens, give 1 to {MAX_LENGTH}")
    # Query i is in sequences of more than i tokens, of which the shortest counts; one token alone
    # is not a sequence of BERT.
    if head.ndim == 1:
        empty = np.arange(0 if head[:2].any() else 1)
    else:
        first = np.where(head.any(1), head.argmax(1), len(head))
        empty = np.flatnonzero(first > np.maximum(np.arange(len(head)), min(1, len(head) - 1)))
    if len(empty):
        raise BadInput(
            f"{place}, row {empty[0]}: the query has no key in a sequence of "
            f"{max(2, empty[0] + 1)} tokens; keep the diagonal, or a neighbour before it"
        )


def _heads(layers: Any, arrays: Mapping[str, Bits]) -> list[list[Head]]:
    """Return the masks that a file's ``layers`` describe; raise ValueError or BadInput."""
    if not isinstance(layers, list) or not all(isinstance(x, list) and x for x in layers):
        raise ValueError("its layers are not a list of lists of heads")
    made: dict[str, Head] = {}
    rows: list[list[Head]] = []
    for layer in layers:
        rows.append([])
        for head in layer:
            if isinstance(head, str):
                rows[-1].append(made.setdefault(head, parse(head)))
                continue
            kind, name = next(iter(head.items())) if isinstance(head, dict) and head else ("", "")
            array = arrays.get(name) if isinstance(name, str) else None
            dimensions = {"bits": 2, "offsets": 1}.get(kind)
            if array is None or array.ndim != dimensions or len(head) != 1:
                raise ValueError(
                    f"the head {shown(head, 60)} is neither pattern nor bits nor offsets"
                )
            rows[-1].append(array)
    return rows


def _read_arrays(path: Path, named: Any) -> dict[str, Bits]:
    """Return the arrays of the file beside ``path``; raise ValueError or OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    if not isinstance(named, dict) or not isinstance(named.get("file"), str):
        raise ValueError("its tensors name no file")
    if Path(named["file"]).name != named["file"] or not named["file"].endswith(".safetensors"):
        raise ValueError("its tensors are not a .safetensors file in the same folder")
    try:
        raw = read_bytes(path.with_name(named["file"]), _LARGEST_TENSORS)
        if hashlib.sha256(raw).hexdigest() != named.get("sha256"):
            raise ValueError("the sha256 differs: it belongs to another mask, or is damaged")
        return load_tensors(raw)
    except OSError as error:
        raise ValueError(f"{shown(named['file'])}: {error.strerror}") from error
    except (ValueError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{shown(named['file'])}: {shown(error)}") from error
