# SPDX-License-Identifier: Apache-2.0
"""kernels.c as Python functions: tensors in, raw pointers out, and nothing unchecked between.

C trusts its arguments, so ``call`` holds every one of them against the kernel's signature first:
type, device, shape, layout, alignment and the range of indices. That costs microseconds a call.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertbench.backends.cpu_ref.layout import Layout, saved_cells, why_no_layout
from bertbench.common import native
from bertbench.common.errors import BadInput, Unsupported

_SIGNATURES = {
    "embed_forward": """ids:i64[rows]<words positions:i64[rows]<places types:i64[rows]<kinds
        word:f32[words,cols] position:f32[places,cols] type:f32[kinds,cols]
        gamma:f32[cols]? beta:f32[cols]?gamma eps:float out:x[rows,cols] xhat:x[rows,cols]?gamma
        rstd:f32[rows] rows cols threshold:u32 scale:float seed:u64 half""",
    "scatter_add": "x:x[rows,cols] ids:i64[rows]<words out:f32[words,cols] rows cols half",
    "norm_forward": """x:x[rows,cols] residual:x[rows,cols]? gamma:f32[cols]? beta:f32[cols]?gamma
        eps:float out:x[rows,cols] xhat:x[rows,cols]?gamma rstd:f32[rows]?gamma
        rows cols threshold:u32 scale:float seed:u64 half""",
    "norm_backward": """dy:x[rows,cols] xhat:x[rows,cols] rstd:f32[rows] gamma:f32[cols]
        dz:x[rows,cols] dropped:x[rows,cols] partial:f32[32,2,cols]
        rows cols outer:int threshold:u32 scale:float seed:u64 half""",
    "column_sums": "x:x[rows,cols] sums:f32[32,cols] rows cols half",
    "gelu_forward": "u:x[rows,cols] bias:f32[cols] y:x[rows,cols] rows cols tanh:int half",
    "gelu_backward": """dy:x[rows,cols] slope:x[rows,cols] du:x[rows,cols] sums:f32[32,cols]
        rows cols half""",
    "dropout": "x:x[rows,cols] out:x[rows,cols] rows cols threshold:u32 scale:float seed:u64 half",
    "cross_entropy": """logits:x[rows,cols] labels:i64[rows]<cols loss:f32[rows] hit:u8[rows]
        rows cols gradient:int half""",
    "attention": """qkv:x[rows,triple] starts:i32[fences] order:i64[sequences]<sequences
        offsets:i64[sequences,heads] sequences heads:dim size:dim
        which:i64[sequences,heads]<layouts? tiles:i64[layouts,edges]?which runs:i32[runs_,2]?which
        bits:i16[layouts,longest,words]? places:i32[layouts,longest]?
        edges:dim longest:dim words:dim queries:dim out:x[rows,width] saved:x[cells]?
        inverse:f32[rows,heads] dout:x[rows,width]? dqkv:x[rows,triple]?dout
        threshold:u32 scale:float seed:u64 half""",
    "offset_attention": """qkv:x[rows,triple] starts:i32[fences] order:i64[sequences]<sequences
        sequences heads:dim size:dim which:i64[heads]<sets steps:i32[sets,slots] slots
        out:x[rows,width] saved:x[heads,rows,slots]? inverse:f32[rows,heads] rows
        dout:x[rows,width]? dqkv:x[rows,triple]?dout threshold:u32 scale:float seed:u64 half""",
    "keep_mask": "out:u8[rows,cols] first:long rows cols threshold:u32 seed:u64",
}
"""The parameters in C's order (rows.h, attention.h, kernels.c): ``name:type[shape]``.

``x`` is the compute type, bfloat16 or float32, one for the whole call, and ``half`` says which. A
name in a shape is one number for the whole call, and alone it is passed on; so neither is given to
``call``. ``<n``: every element is an index below n. ``?``: may be None; ``?other``: is None where,
and only where, the other is.
"""

_OTHERS = ("lamb", "first_outside", "has_bf16_dot")
_DTYPES = {
    "f32": torch.float32, "i64": torch.int64, "i32": torch.int32, "i16": torch.int16,
    "u8": torch.uint8,
}  # fmt: skip
_HALF = {torch.bfloat16: 1, torch.float32: 0}
_SCALARS: dict[str, Any] = {
    "float": ctypes.c_float,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "int": ctypes.c_int,
    "long": ctypes.c_long,
    "dim": ctypes.c_long,
}
_LONGEST_ROW = 1 << 16
"""Columns at most of the kernels that keep a row on the stack."""
_ROW_ON_STACK = ("embed_forward", "norm_forward", "norm_backward")
VECTOR = 64
"""Bytes that attention's ``qkv`` and ``dout`` are aligned to: they are read as whole vectors."""
NOWHERE = 1 << 30
"""A step of offset_attention that leads out of every sequence."""


class _Parameter(NamedTuple):
    name: str
    kind: str
    shape: tuple[str, ...]
    below: str
    optional: str | None
    """None: always given; "": may be None; else the parameter that it is given with."""


def _parse(word: str) -> _Parameter:
    match = re.fullmatch(r"(\w+):?(\w*)(?:\[([\w,]+)\])?<?(\w*)(?:\?(\w*))?", word)
    assert match is not None, word
    name, kind, shape, below, optional = match.groups()
    return _Parameter(name, kind, tuple(shape.split(",")) if shape else (), below, optional)


_PARAMETERS = {
    name: tuple(map(_parse, signature.split())) for name, signature in _SIGNATURES.items()
}
_GIVEN = {
    name: tuple(p for p in parameters if p.shape or p.kind)
    for name, parameters in _PARAMETERS.items()
}


@functools.cache
def library() -> dict[str, Callable[..., Any]]:
    """Return the compiled functions by name; raise native.NativeUnavailable with the reason."""
    loaded = native.load(Path(__file__).with_name("kernels.c"), *_SIGNATURES, *_OTHERS)
    functions: dict[str, Callable[..., Any]] = {}
    for name, parameters in _PARAMETERS.items():
        types = [
            ctypes.c_void_p if p.shape
            else ctypes.c_int if p.name == "half"
            else _SCALARS[p.kind or "dim"]
            for p in parameters
        ]  # fmt: skip
        functions[name] = _declared(loaded, name, types, None)
    real, count, pointer = ctypes.c_float, ctypes.c_long, ctypes.c_void_p
    functions["lamb"] = _declared(
        loaded, "lamb",
        [count, *[pointer] * 6, real, ctypes.c_double, ctypes.c_double, real, real, count, real],
        None,
    )  # fmt: skip
    functions["first_outside"] = _declared(
        loaded, "first_outside", [pointer, count, count], ctypes.c_long
    )
    functions["has_bf16_dot"] = _declared(loaded, "has_bf16_dot", [], ctypes.c_int)
    return functions


def _declared(loaded: ctypes.CDLL, name: str, types: list[Any], result: Any) -> Callable[..., Any]:
    function = getattr(loaded, name)
    function.argtypes, function.restype = types, result
    return function


class _Plan(NamedTuple):
    """What follows from the types and shapes of a call's arguments."""

    order: tuple[int, ...]
    """C's parameters: places among the arguments given and, after them, ``derived``."""
    derived: tuple[int, ...]
    masks: tuple[int, ...]
    """Per argument given, the bits of a pointer that must be 0; 0 for numbers."""
    ranges: tuple[tuple[int, int, str], ...]
    """Places of indices, their bound, and its name."""
    sizes: dict[str, int]


def call(name: str, *args: Tensor | int | float | None) -> None:
    """Call a kernel with contiguous tensors of any shape [...] and numbers, in C's order.

    Shapes and ``half`` follow from the tensors and are not given. Raises ValueError, before memory
    is touched, for a tensor or number that the signature does not allow, Unsupported for rows that
    are too long, and BadInput for an index beyond its table.
    """
    given = _GIVEN[name]
    if len(args) != len(given):
        raise ValueError(f"{name}: {len(args)} arguments, not {len(given)}")
    kinds: list[Any] = []
    values: list[Any] = []
    for p, value in zip(given, args, strict=True):
        if isinstance(value, Tensor):
            kinds.append((value.dtype, value.shape, value.is_cpu and value.is_contiguous()))
            values.append(value.data_ptr())
        else:
            kinds.append(value if p.shape or p.kind == "dim" else None)
            values.append(value)
    plan = _plan(name, tuple(kinds))
    for p, value, mask in zip(given, values, plan.masks, strict=True):
        if mask and value is not None and value & mask:
            raise ValueError(f"{name}: {p.name} is not aligned to {mask + 1} bytes")
        if p.name == "threshold" and not 0 <= value < 1 << 16:
            raise ValueError(f"{name}: threshold is {value}, not from 0 to 65535")
    functions = library()
    for place, below, bound in plan.ranges:
        ids = args[place]
        assert isinstance(ids, Tensor)
        at = functions["first_outside"](values[place], ids.numel(), below)
        if at >= 0:
            raise BadInput(
                f"{name}: {given[place].name}[{at}] is {int(ids[at])} and there are {below} "
                f"{bound}: the data is not of this model"
            )
    if name in ("attention", "offset_attention"):
        _check_attention(name, args, tuple(kinds), plan.sizes)
    values += plan.derived
    if plan.sizes.get("cols") != 0:  # pointers to nothing are not passed on
        functions[name](*map(values.__getitem__, plan.order))


@functools.lru_cache(maxsize=4096)
def _plan(name: str, kinds: tuple[Any, ...]) -> _Plan:
    """Return the plan of a call; raise ValueError or Unsupported where ``call`` does.

    ``kinds`` are, per argument, (dtype, shape, contiguous in the host's memory), a size, or None.
    """
    given = _GIVEN[name]
    kind_of = dict(zip((p.name for p in given), kinds, strict=True))
    sizes: dict[str, int] = {p.name: kind_of[p.name] for p in given if p.kind == "dim"}
    halves: set[int | None] = set()
    for p in given:
        if not p.shape:
            continue
        kind = kind_of[p.name]
        if (kind is None) != _absent(p, kind_of):
            state = "missing" if kind is None else f"given without {p.optional}"
            raise ValueError(f"{name}: {p.name} is {state}")
        if kind is not None:
            wrong = _wrong(p, kind, sizes, halves)
            if wrong:
                raise ValueError(f"{name}: {p.name} is {wrong}")
    if name in _ROW_ON_STACK and sizes["cols"] > _LONGEST_ROW:
        raise Unsupported(
            f"native kernels take rows of at most {_LONGEST_ROW} elements and this model's have "
            f"{sizes['cols']}: --kernels plain"
        )
    places = {p.name: place for place, p in enumerate(given)}
    derived = {"half": int(1 in halves)} | sizes
    places = {n: len(given) + place for place, n in enumerate(derived)} | places
    return _Plan(
        order=tuple(places[p.name] for p in _PARAMETERS[name]),
        derived=tuple(derived.values()),
        masks=tuple(_mask(p, kind) for p, kind in zip(given, kinds, strict=True)),
        ranges=tuple(
            (places[p.name], sizes[p.below], p.below)
            for p in given
            if p.below and kind_of[p.name] is not None
        ),
        sizes=sizes,
    )


def _absent(p: _Parameter, kind_of: dict[str, Any]) -> bool:
    """Return whether the parameter's value must be None."""
    return p.optional is not None and kind_of[p.optional or p.name] is None


def _mask(p: _Parameter, kind: Any) -> int:
    if not p.shape or kind is None:
        return 0
    return (VECTOR if p.name in ("qkv", "dout") else kind[0].itemsize) - 1


def _wrong(p: _Parameter, kind: Any, sizes: dict[str, int], halves: set[int | None]) -> str | None:
    """Return what is wrong with a tensor, or None; add its sizes to ``sizes``."""
    if not isinstance(kind, tuple) or not kind[2]:
        return "not a contiguous tensor in the host's memory"
    dtype, shape, _ = kind
    if p.kind == "x":
        halves.add(_HALF.get(dtype))
    if (p.kind == "x" and (None in halves or len(halves) > 1)) or (
        p.kind != "x" and dtype != _DTYPES[p.kind]
    ):
        return f"{dtype}, not {_DTYPES.get(p.kind, 'the compute type')}"
    fits = len(shape) == len(p.shape) and all(
        n == (int(size) if size.isdigit() else sizes.setdefault(size, n))
        for size, n in zip(p.shape, shape, strict=True)
    )
    return None if fits else f"of shape {list(shape)}, not [{', '.join(p.shape)}] where {sizes}"


_passed: set[tuple[Any, ...]] = set()
"""What ``_check_attention`` let through lately: a batch goes through all layers, in both passes."""
_PASSED = 64
"""So many at most; a model's layers may have a mask each."""


def _check_attention(
    name: str, args: tuple[Any, ...], kinds: tuple[Any, ...], sizes: dict[str, int]
) -> None:
    """Raise ValueError where attention's sequences, layout or steps are not for its tensors.

    The same types, shapes and indices, by their content, are not checked twice.
    """
    named = dict(zip((p.name for p in _GIVEN[name]), args, strict=True))
    indices = (
        None if named[p.name] is None else named[p.name].numpy().tobytes()
        for p in _GIVEN[name] if p.kind in ("i32", "i64")
    )  # fmt: skip
    key = name, kinds, *indices
    if key in _passed:
        return
    lengths = _check_sequences(name, named, sizes)
    (_check_layout if name == "attention" else _check_steps)(named, sizes, lengths)
    if len(_passed) >= _PASSED:
        _passed.clear()
    _passed.add(key)


def _check_sequences(name: str, args: dict[str, Any], sizes: dict[str, int]) -> NDArray[np.int64]:
    """Return the sequences' lengths [sequences].

    Raises ValueError where attention's heads or sequences do not make up its shapes.
    """
    heads, size, rows = sizes["heads"], sizes["size"], sizes["rows"]
    width = heads * size
    if (
        heads < 1
        or size < 16
        or size % 16
        or (sizes["triple"], sizes["width"]) != (3 * width, width)
    ):
        raise ValueError(f"{name}: {heads} heads of {size} do not make up the shapes {sizes}")
    starts = args["starts"].numpy().astype(np.int64)
    lengths = np.diff(starts)
    if (
        len(starts) != sizes["sequences"] + 1
        or (starts[0], starts[-1]) != (0, rows)
        or (lengths < 0).any()
    ):
        raise ValueError(
            f"{name}: sequences that start at {starts.tolist()} do not divide {rows} rows"
        )
    if args["saved"] is None and args["dout"] is not None:
        raise ValueError(f"{name}: the backward pass needs the saved probabilities")
    return lengths


def _check_layout(args: dict[str, Any], sizes: dict[str, int], lengths: NDArray[np.int64]) -> None:
    """Raise ValueError where attention's layout is not for its sequences."""
    layout = Layout(*(args[name] for name in Layout._fields))
    if layout.which is not None:
        why = why_no_layout(layout, lengths)
        if why is not None:
            raise ValueError(f"attention: a layout with {why}")
    elif layout.bits is not None or layout.places is not None:
        raise ValueError("attention: bits or places without a layout")
    if args["saved"] is None:
        return
    cells = saved_cells(lengths, sizes["heads"], layout).ravel()
    offsets = args["offsets"].numpy().ravel()
    if cells.sum() != sizes["cells"] or (offsets != cells.cumsum() - cells).any():
        raise ValueError(f"attention: saved is not the room of {cells.sum()} probabilities")


def _check_steps(args: dict[str, Any], sizes: dict[str, int], _: NDArray[np.int64]) -> None:
    """Raise ValueError for steps that the kernel cannot search, or whose sums would overflow."""
    steps = args["steps"].numpy()
    if sizes["slots"] % 16 or (np.diff(steps, axis=1) < 0).any() or (abs(steps) > NOWHERE).any():
        raise ValueError("offset_attention: steps that do not ascend in vectors of 16")
