# SPDX-License-Identifier: Apache-2.0
"""kernels.c as Python functions: tensors in, raw pointers out."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from bertbench.common import native

_TYPES = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_long,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "u": ctypes.c_uint32,
    "q": ctypes.c_uint64,
}

_SIGNATURES = {
    "embed_forward": "pppppppp f ppp ll ufq i",
    "scatter_add": "ppp ll i",
    "norm_forward": "pppp f ppp ll ufq i",
    "norm_backward": "ppppppp ll i ufq i",
    "column_sums": "pp ll i",
    "gelu_forward": "ppp ll i i",
    "gelu_backward": "pppp ll i",
    "dropout": "pp ll ufq i",
    "cross_entropy": "pppp ll i i",
    "attention": "pppp lll pppp p ufq i",
    "keep_mask": "p lll u q",
    "lamb": "l pppppp f dd ff l",
    "has_bf16_dot": "",
}
"""One letter per parameter of the function in C (rows.h, attention.h, lamb.h, kernels.c)."""


@functools.cache
def library() -> dict[str, Callable[..., Any]]:
    """Return the compiled functions by name; raise native.NativeUnavailable with the reason."""
    loaded = native.load(Path(__file__).with_name("kernels.c"))
    functions = {}
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[letter] for letter in signature.replace(" ", "")]
        function.restype = ctypes.c_int if name == "has_bf16_dot" else None
        functions[name] = function
    return functions


def call(name: str, *args: Tensor | int | float | None) -> None:
    """Call a kernel; tensors of any shape are passed as pointers and must be contiguous."""
    library()[name](*(_plain(a) for a in args))


def _plain(value: Tensor | int | float | None) -> int | float | None:
    if isinstance(value, Tensor):
        assert value.is_contiguous(), "kernels take contiguous tensors"
        return value.data_ptr()
    return value
