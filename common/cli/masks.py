# SPDX-License-Identifier: Apache-2.0
"""``bertbench masks``: the numbers of attention masks, and their pictures."""

from __future__ import annotations

import argparse
import json
import struct
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import PATTERNS, Bits, parameters

BLOCKS = (16, 32, 64, 128)
"""Tokens: the sizes of blocks that kernels work on."""
_DOTS = 156
"""Of a drawing: 78 columns of braille, two dots wide."""
_PNG_SIDE = 1024
"""Pixels that a small mask is enlarged to, at most."""


def main(argv: Sequence[str]) -> int:
    """Print the numbers of the named masks, or all patterns; raises BadInput for unknown ones."""
    verb = parser("masks", epilog=f"Patterns: {', '.join(PATTERNS)}. Without --pattern: all.")
    verb.add_argument(
        "--pattern", action="append", metavar="P",
        help="NAME, NAME:key=value,key=value or a saved mask (.json); repeat it for more",
    )  # fmt: skip
    verb.add_argument("--length", type=int, default=128, metavar="N", help="tokens")
    verb.add_argument("--draw", action="store_true", help="draw the mask in the terminal")
    verb.add_argument("--png", type=Path, metavar="FILE", help="draw it as a PNG picture")
    verb.add_argument("--save", type=Path, metavar="FILE", help="save the mask (.json)")
    verb.add_argument(
        "--reference", type=Path, metavar="FILE", help="a checkpoint of SparseBERT's own code (.pt)"
    )
    verb.add_argument(
        "--sampled", action="store_true",
        help="with --reference: its last sample, not the more probable of keep and drop",
    )  # fmt: skip
    verb.add_argument("--diagonal", action="store_true", help="with --reference: add the diagonal")
    verb.add_argument("--layer", type=int, default=0, metavar="I", help="the layer to draw")
    verb.add_argument("--head", type=int, default=0, metavar="I", help="the head to draw")
    given = verb.parse_args(argv)
    masks = _named(given)
    draws = given.draw or given.png is not None
    if (draws or given.save is not None) and len(masks) != 1:
        raise BadInput("--draw, --png and --save are of one mask: name it with --pattern")
    bits = _one_head(masks[0], given.layer, given.head, given.length) if draws else None
    rows = [numbers(mask, given.length) for mask in masks]
    if given.save is not None:
        masks[0].save(given.save)
    if bits is not None and given.png is not None:
        try:
            given.png.write_bytes(png(bits))
        except OSError as error:
            hint = "" if given.png.parent.is_dir() else ": make the folder first"
            raise BadInput(
                f"--png {shown(given.png)}: cannot be written: {error.strerror}{hint}"
            ) from error
    every = not given.pattern and given.reference is None
    if given.json:
        known = {} if not every else {"patterns": {name: described(name) for name in PATTERNS}}
        print(json.dumps({"length": given.length, "masks": rows} | known, indent=1))
        return 0
    print(render(rows, given.length))
    if every:
        print(f"\n{table()}")
    if bits is not None and given.draw:
        heads = masks[0].layer(given.layer, given.length).shape[0]
        print(f"\nlayer {given.layer}, head {given.head} of {heads}; x: keys, y: queries")
        print(draw(bits))
    return 0


def _named(given: argparse.Namespace) -> list[AttentionMask]:
    """Return the masks that the flags name; raise BadInput for flags that would be ignored."""
    if given.reference is None:
        if given.sampled or given.diagonal:
            raise BadInput("--sampled and --diagonal need --reference, which they are for")
        return [AttentionMask.of(text) for text in given.pattern or PATTERNS]
    if given.pattern:
        raise BadInput("--reference and --pattern each name a mask: leave one out")
    from bertbench.common.masks.reference import read_reference  # only here: it imports torch

    which: Literal["alphas", "mask"] = "mask" if given.sampled else "alphas"
    return [read_reference(given.reference, which=which, diagonal=given.diagonal)]


def numbers(mask: AttentionMask, length: int) -> dict[str, Any]:
    """Return the numbers of a mask at ``length`` tokens, means over layers and heads."""
    nnz = mask.nnz(length)
    return {
        "mask": mask.text,
        "nnz": int(nnz) if nnz.is_integer() else nnz,
        "sparsity_ratio": 1 - nnz / length**2,
        "blocks_kept": {str(size): mask.blocks_kept(length, size) for size in BLOCKS},
        "toeplitz": mask.is_toeplitz(length),
        "layers": len(mask.layers),
        "heads": mask.heads,
        "hash": mask.hash,
    }


def described(name: str) -> dict[str, Any]:
    """Return a pattern's summary and parameters as JSON values."""
    return {
        "summary": PATTERNS[name].summary,
        "parameters": {
            key: {"default": p.default, "low": p.low, "high": p.high, "help": p.help}
            for key, p in parameters(name).items()
        },
    }


def render(rows: Sequence[dict[str, Any]], length: int) -> str:
    """Return the table of numbers for people."""
    width = max(len("mask"), *(len(row["mask"]) for row in rows))
    sizes = "".join(f"{size:>6}" for size in BLOCKS)
    several = any(row["layers"] * row["heads"] > 1 for row in rows)
    lines = [
        f"n = {length}; kept: share of blocks, of 16 to 128 tokens a side, with an entry",
        *(["all numbers are means over layers and heads"] if several else []),
        f"{'mask':<{width}}{'nnz':>12}{'sparsity %':>12}  kept % of blocks of:{sizes}",
    ]
    for row in rows:
        kept = "".join(f"{100 * share:>6.1f}" for share in row["blocks_kept"].values())
        lines.append(
            f"{shown(row['mask']):<{width}}{row['nnz']:>12,.10g}"
            f"{100 * row['sparsity_ratio']:>12.2f}{'':>22}{kept}"
        )
    return "\n".join(lines)


def table() -> str:
    """Return all patterns with their parameters and defaults, for people."""
    lines = []
    shared = dict(parameters("star").items() - PATTERNS["star"].parameters.items())
    rows = {name: (kind.summary, kind.parameters) for name, kind in PATTERNS.items()}
    for name, (summary, own) in {**rows, "every pattern": ("except dense", shared)}.items():
        lines.append(f"{name:<11} {summary}")
        for key, p in own.items():
            default = "+".join(map(str, p.default)) if isinstance(p.default, tuple) else p.default
            lines += textwrap.wrap(
                f"{key}={default}  {p.help}", 80, initial_indent=" " * 12,
                subsequent_indent=" " * 14,
            )  # fmt: skip
    return "\n".join(lines)


def draw(bits: Bits) -> str:
    """Return a mask, bool [n, n], as lines of braille, two by four entries a character.

    A larger mask is pooled: a dot is then several entries, of which one is True.
    """
    size = -(-len(bits) // _DOTS)
    dots = _pooled(bits, size)
    side = len(dots)
    dots = np.pad(dots, ((0, -side % 4), (0, -side % 2)))
    cells = dots.reshape(len(dots) // 4, 4, -1, 2).transpose(0, 2, 1, 3)
    weights = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    codes = 0x2800 + (cells * weights).sum((2, 3))
    return "\n".join("".join(map(chr, row)) for row in codes)


def png(bits: Bits) -> bytes:
    """Return a mask, bool [n, n], as a PNG of 1-bit grey, True black; small masks are enlarged.

    Source: the PNG specification, third edition (W3C 2025), chapters 5, 9 and 11.
    """
    factor = max(1, _PNG_SIDE // len(bits))
    rows = np.packbits(~bits.repeat(factor, 0).repeat(factor, 1), axis=1)
    side = len(rows)
    filtered = np.pad(rows, ((0, 0), (1, 0)))  # each row begins with its filter: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def _one_head(mask: AttentionMask, layer: int, head: int, length: int) -> Bits:
    """Return one head's mask, [length, length]; raise BadInput for a layer or head it lacks."""
    for name, index, count in (
        ("layer", layer, len(mask.layers)),
        ("head", head, len(mask.layers[min(layer, len(mask.layers) - 1)])),
    ):
        if not 0 <= index < count:
            raise BadInput(f"--{name} {index}: the mask has {count}, numbered from 0")
    bits: Bits = mask.layer(layer, length)[head]
    return bits


def _pooled(bits: Bits, size: int) -> Bits:
    """Return which squares of ``size`` entries of [n, n] hold a True."""
    edges = np.arange(0, len(bits), size)
    return np.logical_or.reduceat(np.logical_or.reduceat(bits, edges, 0), edges, 1)
