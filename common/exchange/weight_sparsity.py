# SPDX-License-Identifier: Apache-2.0
"""Whether the weights of a run, a weights file or an ONNX model are 2:4 sparse.

A weight holds the pattern if each four consecutive input features of each output keep two entries
at most. ONNX stores most weights as [in, out], and a symmetric or shifted int8 in place of a float:
the products that read a weight decide its direction, and its zero point what is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bertbench.common.compress.pruning import COLUMNS, KEPT, ROWS, is_prunable, most_nonzeros
from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.files import shown
from bertbench.common.model.naming import LAYER, huggingface_names, unwrapped
from bertbench.common.model.weight_files import SUFFIXES, find_prefix, read_weights
from bertbench.common.training.checkpoint import load, resolve

Kind = Literal["checkpoint", "weights", "onnx"]
ONNX = "model.onnx"
_FOLDERS = (ONNX, "model.safetensors", "pytorch_model.bin")
"""What export-onnx, import-weights and export-weights write into their folders."""
_PASSED_ON = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose"})
"""ONNX operators between a stored weight and its product."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight."""

    name: str
    """As in the file."""
    shape: tuple[int, ...]
    """[out, in], however it is stored."""
    kept: float
    """Share of the entries that are not zero."""
    most: int
    """The most entries that are not zero in any four consecutive inputs."""
    eligible: bool
    """Whether 2:4 kernels take this shape."""

    @property
    def holds(self) -> bool:
        """Whether it is 2:4 sparse."""
        return self.most <= KEPT

    @classmethod
    def of(cls, name: str, nonzero: Tensor) -> Matrix:
        """Return the numbers of a weight whose entries other than zero are True, bool [out, in]."""
        share = float(nonzero.sum(dtype=torch.float64)) / max(1, nonzero.numel())
        shape = tuple(nonzero.shape)
        return cls(shown(name), shape, share, most_nonzeros(nonzero), is_prunable(nonzero))


def check_sparsity(place: Path) -> tuple[Path, Kind, list[Matrix]]:
    """Return the file that ``place`` leads to, its kind, and the weights in it.

    ``place`` is a run, a checkpoint, a file of weights, an ONNX file, or a folder that
    ``export-onnx``, ``export-weights`` or ``import-weights`` wrote. Of named weights those of the
    encoder's layers are returned; of an ONNX graph, whose names say little, the constants of all
    matrix products. Raises BadInput for a damaged file, and where no weight can be 2:4 sparse;
    Unsupported for ONNX without the package onnx.
    """
    file, kind = _found(place)
    if kind == "onnx":
        made = [Matrix.of(name, nonzero) for name, nonzero in _constants(file)]
    elif kind == "checkpoint":
        made = _of_state(file, load(file)[0].get("model", {}))
    else:
        made = _of_state(file, read_weights(file)[0])
    if not any(matrix.eligible for matrix in made):
        raise BadInput(
            f"{shown(file)}: none of its {len(made)} encoder weights can be 2:4 sparse, which "
            f"takes rows of a multiple of {ROWS} and columns of {COLUMNS}: give a BERT's weights"
        )
    return file, kind, made


def _found(place: Path) -> tuple[Path, Kind]:
    if place.is_dir():
        named = [place / name for name in _FOLDERS if (place / name).is_file()]
        # A checkpoint's folder has a model.safetensors, too, and a manifest that it is held to.
        if not named or (place / "manifest.json").is_file():
            return resolve(place).resolve(), "checkpoint"
        place = named[0]
    if not place.is_file():
        raise BadInput(f"{shown(place)}: no such file, run or exported folder")
    if place.suffix == ".onnx":
        return place, "onnx"
    if place.suffix not in SUFFIXES:
        raise BadInput(
            f"{shown(place)}: neither ONNX nor a file of weights ({', '.join(SUFFIXES)}); "
            f"`bertbench import-weights` converts Megatron's .pkl"
        )
    return place, "weights"


def _of_state(file: Path, state: Any) -> list[Matrix]:
    """Return the weights of the encoder's layers among tensors [...] by name."""
    prefix = find_prefix(file, map(str, state))
    made: list[tuple[int, Matrix]] = []
    for name, value in state.items():
        plain = unwrapped(str(name)).removeprefix(prefix)
        known = huggingface_names(plain, "post")[0]
        layer = LAYER.match(known)
        if layer and known.endswith(".weight") and isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta:
                raise BadInput(
                    f"{shown(file)}: {shown(name)} is not a dense tensor: save it as one"
                )
            if value.dim() == 2:
                made.append((int(layer[1]), Matrix.of(str(name), value != 0)))
    return [matrix for _, matrix in sorted(made, key=lambda pair: pair[0])]


def _constants(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and nonzero entries, bool [out, in], of each weight of a graph's products."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise Unsupported(f"{shown(file)}: {error}; {install('onnx')}") from error
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                stored[node.output[0]] = node.attribute[0].t

        def values(name: str) -> Any:
            return numpy_helper.to_array(stored[name], base_dir=str(file.parent))

        seen = set()
        for at, name, transposed in _operands(graph, makers):
            if name not in stored or len(stored[name].dims) != 2 or (name, transposed) in seen:
                continue
            seen.add((name, transposed))
            nonzero = torch.from_numpy(values(name) != _zero_point(at, stored, values))
            yield name, nonzero.T if transposed else nonzero
    except Exception as error:  # a damaged file makes it raise almost anything
        reason = shown(error) or type(error).__name__
        raise BadInput(f"{shown(file)}: cannot be read as an ONNX model ({reason})") from error


def _operands(graph: Any, makers: dict[str, Any]) -> Iterator[tuple[Any, str, bool]]:
    """Yield, for each factor of each product, its first use, its name and whether it is [in, out].

    A constant factor is followed back through scales and transpositions to where it is stored.
    """
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        flags = {a.name: bool(a.i) for a in node.attribute}
        for side, name in enumerate(node.input[:2]):
            # x @ weight reads [in, out], and weight @ x reads [out, in].
            transposed = (side == 1) != flags.get("transB" if side else "transA", False)
            at = node
            for _ in makers:  # no more often, whatever circle a file describes
                if name not in makers or makers[name].op_type not in _PASSED_ON:
                    break
                at = makers[name]
                order = [list(a.ints) for a in at.attribute if a.name == "perm"]
                transposed ^= at.op_type == "Transpose" and order != [[0, 1]]
                name = at.input[0]
            yield at, name, transposed


def _zero_point(node: Any, stored: dict[str, Any], values: Any) -> Any:
    """Return the integer that stands for 0 in what ``node`` reads: one, or [1, n] or [n, 1]."""
    if node.op_type != "DequantizeLinear" or len(node.input) < 3 or not node.input[2]:
        return 0
    zero = values(node.input[2])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return zero.reshape(-1, 1) if zero.size > 1 and axis in (0, -2) else zero
