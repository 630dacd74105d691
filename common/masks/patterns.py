# SPDX-License-Identifier: Apache-2.0
"""Fixed patterns of sparse attention: functions of a length that give bool [n, n].

Entry [i, j] is True where query i may attend to key j. All patterns are bidirectional, contain the
diagonal, and give the same bits on every machine. Unless noted, the mask of a shorter sequence is
the upper left corner of a longer one's. Sources: Child et al. 2019 (strided, fixed), Beltagy et al.
2020 (longformer), Li et al. 2019 (logsparse), Zaheer et al. 2020 (bigbird), Guo et al. 2019 (star);
defaults: the rows of SparseBERT's table (Shi et al. 2021) at n = 128.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bertbench.common.errors import BadInput
from bertbench.common.files import shown

Bits = npt.NDArray[np.bool_]
Value = int | tuple[int, ...]

MAX_LENGTH = 16_384
"""Tokens; a mask of this length has 256 MiB as bool."""
_POSITIONS = 64
"""The most global tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a pattern: an integer, or positions joined by + where the default is."""

    default: Value
    low: int
    help: str
    high: int = MAX_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One row of the table."""

    make: Callable[..., Bits]
    summary: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def _distance(n: int) -> npt.NDArray[np.int32]:
    """Return abs(i - j), [n, n]."""
    at = np.arange(n, dtype=np.int32)
    return np.abs(at[:, None] - at)


def _with_globals(bits: Bits, positions: tuple[int, ...]) -> Bits:
    """Open rows and columns of those ``positions`` that are within ``bits`` [n, n]."""
    inside = [p for p in positions if p < len(bits)]
    bits[inside, :] = bits[:, inside] = True
    return bits


def dense(n: int) -> Bits:
    """Return all True, [n, n]."""
    return np.ones((n, n), dtype=bool)


def strided(n: int, *, stride: int) -> Bits:
    """Return, [n, n]: the ``stride`` neighbours of each side, and every ``stride``-th token."""
    distance = _distance(n)
    return (distance <= stride) | (distance % stride == 0)


def fixed(n: int, *, stride: int, summary: int) -> Bits:
    """Return, [n, n]: the own block of ``stride`` tokens, and each block's last ``summary``."""
    at = np.arange(n)
    own = at[:, None] // stride == at // stride
    return own | (at % stride >= stride - summary)


def longformer(n: int, *, window: int, dilation: int, globals: tuple[int, ...]) -> Bits:
    """Return, [n, n]: ``window`` keys of each side, ``dilation`` apart, and global tokens."""
    distance = _distance(n)
    near = (distance <= window * dilation) & (distance % dilation == 0)
    return _with_globals(near, globals)


def logsparse(n: int, *, window: int) -> Bits:
    """Return, [n, n]: ``window`` neighbours of each side, and distances that are powers of two."""
    distance = _distance(n)
    return (distance <= window) | (distance & (distance - 1) == 0)


def bigbird(n: int, *, window: int, globals: tuple[int, ...], random: int, seed: int) -> Bits:
    """Return, [n, n]: a window, global tokens, and ``random`` keys drawn for each query.

    Draws may meet each other and the window. Draw t of query i is floor(u n), where u depends on
    (seed, i, t) only; so another length has other keys, at the same relative places.
    """
    bits = _distance(n) <= window
    rows = np.arange(n, dtype=np.uint64)[:, None]
    draws = _draws(seed, rows * np.uint64(1 << 20) + np.arange(random, dtype=np.uint64))
    bits[rows.astype(np.int64), (draws * n).astype(np.int64)] = True
    return _with_globals(bits, globals)


def star(n: int, *, window: int, globals: tuple[int, ...]) -> Bits:
    """Return, [n, n]: ``window`` neighbours of each side, and relay tokens that see and are seen
    by all.
    """
    return _with_globals(_distance(n) <= window, globals)


def _draws(seed: int, counters: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) for ``counters`` [...]: SplitMix64 (Steele et al. 2014).

    Counter-based, since NumPy does not promise the streams of its generators across versions.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) * np.uint64(0xD1B54A32D192ED03) + (counters + np.uint64(1)) * golden
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _window(default: int) -> Parameter:
    return Parameter(default=default, low=0, help="neighbours of each side")


def _globals(*default: int) -> Parameter:
    return Parameter(
        default=default, low=0, high=MAX_LENGTH - 1,
        help="positions of global tokens, joined by +; those beyond the length are left out",
    )  # fmt: skip


_STRIDE = Parameter(default=4, low=1, help="distance of the tokens seen from afar")
_BLOCK = Parameter(
    default=1, low=1, high=1024,
    help="block=B makes B tokens one block; all other numbers then count blocks",
)  # fmt: skip

PATTERNS: Mapping[str, Kind] = MappingProxyType(
    {
        "dense": Kind(make=dense, summary="every key"),
        "strided": Kind(
            make=strided, summary="neighbours, and every stride-th token (Sparse Transformer)",
            parameters={"stride": _STRIDE},
        ),
        "fixed": Kind(
            make=fixed, summary="the own block, and the last tokens of all (Sparse Transformer)",
            parameters={
                "stride": Parameter(default=4, low=1, help="tokens of a block"),
                "summary": Parameter(default=1, low=1, help="last tokens of a block"),
            },
        ),
        "longformer": Kind(
            make=longformer, summary="a window, dilated or not, and global tokens",
            parameters={
                "window": _window(5),
                "dilation": Parameter(default=1, low=1, help="distance of neighbours"),
                "globals": _globals(0, 64),
            },
        ),
        "logsparse": Kind(
            make=logsparse, summary="distances that are powers of two",
            parameters={"window": _window(1)},
        ),
        "bigbird": Kind(
            make=bigbird, summary="a window, global tokens, and random keys of each query",
            parameters={
                "window": _window(2),
                "globals": _globals(0),
                "random": Parameter(default=2, low=0, high=1024, help="random keys of each query"),
                "seed": Parameter(default=7, low=0, high=2**32 - 1, help="of the random keys"),
            },
        ),
        "star": Kind(
            make=star, summary="neighbours, and relay tokens that all see",
            parameters={"window": _window(1), "globals": _globals(0)},
        ),
    }
)  # fmt: skip
"""Name -> pattern. The defaults of ``longformer`` and ``bigbird`` are ours: the table names no
parameters, and these give its 88.7 and 93.2 % (bigbird's seed is the first that does)."""


def parameters(name: str) -> dict[str, Parameter]:
    """Return the parameters of the pattern ``name``; all but dense have ``block``."""
    own = PATTERNS[name].parameters
    return {**own, "block": _BLOCK} if own else {}


@dataclass(frozen=True)
class Pattern:
    """A pattern with all of its parameters; make it with ``parse``."""

    name: str
    values: tuple[tuple[str, Value], ...]

    def bits(self, length: int) -> Bits:
        """Return the mask, read-only bool [length, length]; raises BadInput for a bad length."""
        if not 0 < length <= MAX_LENGTH:
            raise BadInput(f"a mask's length is {length}: give 1 to {MAX_LENGTH}")
        return _bits(self, length)

    @cached_property
    def text(self) -> str:
        """The shortest text that ``parse`` reads as this pattern."""
        known = parameters(self.name)
        return self._text({k: v for k, v in self.values if v != known[k].default})

    @cached_property
    def full_text(self) -> str:
        """The text with every parameter: it stays the same pattern should a default change."""
        return self._text(dict(self.values))

    def _text(self, values: Mapping[str, Value]) -> str:
        words = ",".join(f"{key}={_as_text(value)}" for key, value in values.items())
        return f"{self.name}:{words}" if words else self.name


@lru_cache(maxsize=4)
def _bits(pattern: Pattern, length: int) -> Bits:
    values: dict[str, Any] = dict(pattern.values)
    block = values.pop("block", 1)
    bits = PATTERNS[pattern.name].make(-(-length // block), **values)
    if block > 1:
        bits = bits.repeat(block, 0).repeat(block, 1)[:length, :length].copy()
    bits.setflags(write=False)
    return bits


def parse(text: str) -> Pattern:
    """Return the pattern of ``NAME`` or ``NAME:key=value,key=value``; raises BadInput.

    Positions are joined by +, as in ``star:globals=0+64``; ``globals=`` gives none.
    """
    name, colon, rest = text.partition(":")
    if name not in PATTERNS:
        raise BadInput(
            f"attention mask {shown(repr(text), 80)}: unknown pattern {shown(repr(name), 40)}; "
            f"known: {', '.join(PATTERNS)}; a saved mask ends in .json"
        )
    known = parameters(name)
    values = {key: parameter.default for key, parameter in known.items()}
    seen: set[str] = set()
    for word in rest.split(",") if colon else ():
        key, equals, value = word.partition("=")
        if key not in known or not equals or key in seen:
            what = "is given twice" if key in seen else f"is not key=value of {name}"
            raise BadInput(
                f"attention mask {shown(repr(text), 80)}: {shown(repr(word), 40)} {what}; "
                f"known: {', '.join(known) or 'no parameters'}"
            )
        seen.add(key)
        values[key] = _value(known[key], key, value, text)
    if name == "fixed" and values["summary"] > values["stride"]:  # type: ignore[operator]
        raise BadInput(
            f"attention mask {shown(repr(text), 80)}: summary is at most stride {values['stride']}"
        )
    return Pattern(name, tuple(values.items()))


def _value(parameter: Parameter, key: str, value: str, text: str) -> Value:
    several = isinstance(parameter.default, tuple)
    words = value.split("+") if several and value else [] if several else [value]
    right = all(re.fullmatch(r"[0-9]{1,10}", w) for w in words) and len(words) <= _POSITIONS
    numbers = tuple(map(int, words)) if right else ()
    if not right or any(not parameter.low <= n <= parameter.high for n in numbers):
        what = f"at most {_POSITIONS} numbers, joined by +, each" if several else "a whole number"
        raise BadInput(
            f"attention mask {shown(repr(text), 80)}: {key} must be {what} from {parameter.low} "
            f"to {parameter.high}"
        )
    return tuple(sorted(set(numbers))) if several else numbers[0]


def _as_text(value: Value) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
