# SPDX-License-Identifier: Apache-2.0
"""Arrays in a pickle of a dictionary, read without unpickling: no code in the file can run.

``pickletools.genops`` splits the file into instructions, and a small stack machine follows those
that a dictionary of numpy arrays needs. A global is a name in a table, never an object: it imports
nothing, and "calling" one makes a value of this module. Source: the documentation of pickletools
(CPython), and the ``__reduce__`` of numpy's ndarray, dtype and scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops
from typing import Any

import numpy as np

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown

LARGEST = 8 << 30
"""Bytes of a file, which is read whole: six times BERT-large in float32."""
MOST_INSTRUCTIONS = 200_000
"""About 25 an array."""
_FLOATS = {"f2", "f4", "f8"}
_LISTED = ", ".join(sorted(_FLOATS))

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True)
class _Global:
    make: Callable[..., Any]


@dataclass(slots=True)
class _Dtype:
    """An element type: ``state`` brings its byte order."""

    code: str
    order: str = "<"

    def set(self, _version: int, order: str, *others: Any) -> None:
        if order not in ("<", ">", "=", "|") or any(others[:3]):
            raise ValueError("an array's elements must be plain numbers")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.code}")


@dataclass(slots=True)
class _Stored:
    """An array whose ``state`` brings its content."""

    values: Array | None = None

    def set(self, _version: int, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        self.values = _array(data, dtype, shape, "F" if fortran else "C").values


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> _Stored:
    sizes = shape if isinstance(shape, tuple) and len(shape) <= 8 else ("none",)
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(data, bytes | bytearray)
        or any(type(size) is not int or size < 0 for size in sizes)
        or math.prod(sizes) * dtype.numpy().itemsize != len(data)
    ):
        raise ValueError("an array's shape and content do not agree")
    flat = np.frombuffer(data, dtype.numpy())
    return _Stored(flat.reshape(sizes, order="F" if order == "F" else "C"))


def _dtype(code: Any, *_flags: Any) -> _Dtype:
    # Text first, here and below: to hash a tuple in a tuple in a tuple ... ends the process.
    if not isinstance(code, str) or code not in _FLOATS:
        kind = shown(code, 40) if isinstance(code, str) else "not named by text"
        objects = ", which are Python objects" if kind[:1] == "O" else ""
        raise ValueError(f"an array's elements are {kind}{objects}: weights are of {_LISTED}")
    return _Dtype(code)


def _scalar(dtype: Any, data: Any) -> _Stored:
    return _array(data, dtype, (), "C")


def _encoded(text: Any, encoding: Any = None) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("its bytes have another encoding than latin1")
    return text.encode("latin1")


def _ordered(*items: Any) -> dict[str, Any]:
    if items:
        raise ValueError("an OrderedDict is made from a list")
    return {}


_GLOBALS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": lambda *_: None,  # an argument of the next, never called
    "numpy.dtype": _dtype,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray._reconstruct"] = lambda *_: _Stored()
    _GLOBALS[f"{_core}.multiarray.scalar"] = _scalar
    _GLOBALS[f"{_core}.numeric._frombuffer"] = _array


class _Machine:
    """The stack of a pickle, and what its instructions do to it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        """The stacks below each mark."""
        self.memo: dict[int, Any] = {}

    def do(self, name: str, arg: Any) -> None:
        """Follow one instruction; raises ValueError, or what a damaged stack makes Python raise."""
        stack = self.stack
        if name in _PUSHED:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(self._last(count))]
        elif name in _STORED:
            self.memo[len(self.memo) if arg is None else arg] = stack[-1]
        elif name in _FETCHED:
            stack.append(self.memo[arg])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(arg.split(" ", 1) if name == "GLOBAL" else self._pop(2))
        elif name not in _IGNORED:
            if name not in _WORK:
                raise ValueError(
                    f"it has the instruction {name}, which arrays do not need since protocol 2"
                )
            _WORK[name](self)

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("an instruction without its operands")
        return self.stack[-count:]

    def _pop(self, count: int) -> list[Any]:
        taken = self._last(count)
        del self.stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def _name(self, parts: list[Any]) -> None:
        name = ".".join(part for part in parts if isinstance(part, str))
        if name not in _GLOBALS:
            raise ValueError(f"it names {shown(name, 80)}, which no array needs")
        self.stack.append(_Global(_GLOBALS[name]))

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def empty_dict(self) -> None:
        self.stack.append({})

    def tuple(self) -> None:
        taken = self._to_mark()
        self.stack.append(tuple(taken))

    def setitem(self) -> None:
        self._set(self._pop(2))

    def setitems(self) -> None:
        self._set(self._to_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in pairs[::2]):
            raise ValueError("its keys must be names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def reduce(self) -> None:
        function, given = self._pop(2)
        if not isinstance(function, _Global) or not isinstance(given, tuple):
            raise ValueError("it calls something else than a function")
        self.stack.append(function.make(*given))

    def build(self) -> None:
        target, state = self.stack[-2:]
        if not isinstance(target, _Dtype | _Stored) or not isinstance(state, tuple):
            raise ValueError("it gives a state to something else than an array")
        self.stack.pop()
        target.set(*state)


_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORED = {"MEMOIZE", "BINPUT", "LONG_BINPUT"}
_FETCHED = {"BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME", "STOP"}
_WORK: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark, "EMPTY_DICT": _Machine.empty_dict, "TUPLE": _Machine.tuple,
    "SETITEM": _Machine.setitem, "SETITEMS": _Machine.setitems, "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}  # fmt: skip


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the floating-point arrays [...] and numbers [] in a pickled dictionary, by name.

    The arrays share the file's bytes. Raises BadInput for anything but a dictionary of them: a
    pickle that names a function or class of any other kind is refused with its name.
    """
    machine = _Machine()
    try:
        data = read_bytes(path, LARGEST)
        for done, (opcode, arg, _) in enumerate(genops(data)):
            if done > MOST_INSTRUCTIONS:
                raise ValueError(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            machine.do(opcode.name, arg)
        (found,) = machine.stack
        if not isinstance(found, dict):
            raise ValueError("it holds something else")
        arrays = {name: _values(name, value) for name, value in found.items()}
        if sum(a.nbytes for a in arrays.values()) > len(data):
            raise ValueError("its arrays share their content")
    except (OSError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, LookupError | TypeError):
            reason = "it is damaged"
        raise BadInput(
            f"{shown(path)}: no pickled dictionary of arrays by name: {shown(reason)}. Nothing in "
            f"it was executed"
        ) from error
    return arrays


def _values(name: str, value: Any) -> Array:
    if isinstance(value, _Stored) and value.values is not None:
        return value.values
    if type(value) in (int, float):
        return np.asarray(float(value))
    raise ValueError(f"{shown(name, 80)} must be an array or a number")
