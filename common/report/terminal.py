# SPDX-License-Identifier: Apache-2.0
"""Text that fits the terminal: wrapped lines, and tables that leave out columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

NARROWEST = 40
_GAP = "  "
_LEAST = 8
"""Characters to which a column may be cut."""
_CUT = "~"


def columns() -> int:
    """Return the columns of the terminal, at least ``NARROWEST``; 80 where it has none."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def wrapped(text: str, columns: int, label: str = "") -> str:
    """Return ``text`` behind its label; paths and numbers with hyphens stay whole."""
    wrap = textwrap.TextWrapper(
        columns, initial_indent=label, subsequent_indent=" " * len(label),
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
    return wrap.fill(text)


def table(
    rows: Sequence[Sequence[str]], columns: int, *, drop: Sequence[int], shrink: Sequence[int]
) -> list[str]:
    """Return ``rows`` (the first has the headings) as lines of at most ``columns``.

    The columns ``shrink`` are cut first, to eight characters; then those in ``drop`` are left out,
    in this order, each only if it must. An empty column is never shown.
    """
    natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kept = [i for i in range(len(natural)) if any(row[i] for row in rows[1:])]
    for left_out in (None, *drop):
        kept = [i for i in kept if i != left_out]
        widths = _shrunk({i: natural[i] for i in kept}, columns, shrink)
        if _length(widths) <= columns:
            break
    return [_GAP.join(_cell(row[i], widths[i]) for i in kept).rstrip() for row in rows]


def _length(widths: dict[int, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _shrunk(widths: dict[int, int], columns: int, shrink: Sequence[int]) -> dict[int, int]:
    """Return widths that fit, if the columns ``shrink`` allow it: the widest is cut first."""
    while _length(widths) > columns:
        wide = [i for i in shrink if widths.get(i, 0) > _LEAST]
        if not wide:
            break
        widths[max(wide, key=lambda i: widths[i])] -= 1
    return widths


def _cell(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + _CUT
