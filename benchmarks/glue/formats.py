# SPDX-License-Identifier: Apache-2.0
"""GLUE's files and JSON lines as examples, refused with the line where they are damaged.

Fields are separated by tabs and never quoted: a quote is a character of the text. Columns are found
by the header's names. JSON lines have the same names as keys; there, a class may also be its number
in Hugging Face's order, as SNLI is often distributed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertbench.benchmarks.glue.tasks import INDEX, PAIR_IDS, GlueTask, Names
from bertbench.common.data.foreign import text_of
from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, shown

_NUMBER = re.compile(r" *[0-9.eE+-]+ *")
"""What float() takes, without 1_0 and other scripts' digits."""
LARGEST_FILE = 1 << 30
"""Bytes; the largest, SNLI's training file as JSON lines, has half of them."""
_ADVICE = {
    True: "correct it, or leave such lines out with --malformed_lines skip",
    False: "correct it, since a submission needs every line",
}
"""By whether labels are read, with their texts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """N examples of one file."""

    path: Path
    sha256: str
    """Of the file's bytes."""
    texts: tuple[list[str], ...]
    """One or two lists of N texts."""
    labels: NDArray[Any] | None
    """int64 [N], the classes, or float32 [N], the numbers; None where they were not read."""
    index: list[str]
    """The N examples' numbers in the file: its column of that name, else counted from 0."""
    pair_ids: list[str] | None = None
    """MRPC's two ids of each example, with a tab between them; None without these columns."""
    unlabelled: int = 0
    """Examples left out because the annotators did not agree."""
    malformed: tuple[int, ...] = ()
    """Numbers of the lines that were skipped."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """Return the examples where ``chosen`` [N] is true, in their order."""
        rows = np.flatnonzero(chosen).tolist()
        if not rows:
            raise BadInput(f"{self.path}: no example is left in one part of the split")
        pairs = self.pair_ids
        return replace(
            self,
            texts=tuple([text[i] for i in rows] for text in self.texts),
            labels=None if self.labels is None else self.labels[rows],
            index=[self.index[i] for i in rows],
            pair_ids=None if pairs is None else [pairs[i] for i in rows],
        )


@dataclass(frozen=True, slots=True)
class _Line:
    """One example's fields; ``at`` is where it stands, for messages."""

    number: int
    at: str
    fields: Mapping[str, Any]


def read_examples(path: Path, task: GlueTask, *, labelled: bool, skip: bool = False) -> Examples:
    """Read a file of ``task``.

    Args:
        path: tab-separated, as in GLUE's archives, or JSON lines; gzip is unpacked.
        task: its columns and labels.
        labelled: whether labels are read.
        skip: leave malformed lines out instead of refusing the file.

    Raises:
        BadInput: the file cannot be read, lacks a column or any example, has a malformed line or a
            label that the task does not have; the message names file and line.
    """
    try:
        raw = read_bytes(path, LARGEST_FILE)
        text = text_of(raw, LARGEST_FILE)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}: name an existing file") from error
    except ValueError as error:
        raise BadInput(f"{path} {str(error).removeprefix('it ')}") from error
    malformed: list[int] = []
    bad = malformed if skip else None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if text.lstrip()[:1] == "{":
        found = _json_lines(path, lines, labelled, bad)
    else:
        found = _table(path, lines, task, labelled, bad)
    return _collect(path, found, task, labelled, malformed, hashlib.sha256(raw).hexdigest())


def read_predictions(path: Path, task: GlueTask) -> Examples:
    """Read predictions in the layout of GLUE's server: a header, then a number and a label a line.

    Returns examples without texts; numbers need not be in the task's range. Raises BadInput as
    ``read_examples``.
    """
    most = float(np.finfo(np.float32).max)
    layout = replace(
        task,
        texts=(),
        label=("prediction",),
        positions=(),
        unlabelled=(),
        range=task.range and (-most, most),
    )
    return read_examples(path, layout, labelled=True)


def _collect(
    path: Path,
    lines: Iterator[_Line],
    task: GlueTask,
    labelled: bool,
    malformed: list[int],
    sha256: str,
) -> Examples:
    texts: tuple[list[str], ...] = tuple([] for _ in task.texts)
    labels: list[float] = []
    index: list[str] = []
    pairs: list[str] = []
    unlabelled = 0
    for count, line in enumerate(lines):
        if labelled:
            label = _label(line, task)
            if label is None:
                unlabelled += 1
                continue
            labels.append(label)
        for part, names in zip(texts, task.texts, strict=True):
            part.append(_text(line, names))
        number = next((line.fields[n] for n in INDEX if n in line.fields), None)
        if number is None and not task.texts:  # by order they would be another example's
            raise BadInput(f"{line.at}: a prediction without its {INDEX[0]}: name that column so")
        number = count if number is None else number
        index.append(" ".join(str(number).split()))
        if all(name in line.fields for name in PAIR_IDS):
            pairs.append("\t".join(str(line.fields[name]) for name in PAIR_IDS))
    if not index:
        raise BadInput(f"{path} has no example: name a file of the task with examples")
    kind = np.int64 if task.labels else np.float32
    return Examples(
        path=path,
        sha256=sha256,
        texts=texts,
        labels=np.array(labels, kind) if labelled else None,
        index=index,
        pair_ids=pairs if len(pairs) == len(index) else None,
        unlabelled=unlabelled,
        malformed=tuple(malformed),
    )


# -- lines ----------------------------------------------------------------------------------------
def _table(
    path: Path, lines: Sequence[str], task: GlueTask, labelled: bool, malformed: list[int] | None
) -> Iterator[_Line]:
    """Yield the lines of a tab-separated file; raise BadInput, or list the malformed ones."""
    columns = tuple(lines[0].split("\t"))
    wanted = [*task.texts, *([task.label] if labelled else [])]
    first = 1
    if task.positions and not _has(columns, task.texts[0]):
        columns, first = task.positions, 0
    missing = [" or ".join(names) for names in wanted if not _has(columns, names)]
    if missing:
        fix = (
            f"name a file of {task.folder} as GLUE's archive has it, with its header, or the "
            f"file's task with --task"
            if task.texts
            else "its first line must be index, a tab and prediction"
        )
        raise BadInput(
            f"{path}, line 1: no column {', '.join(missing)} among "
            f"{shown(', '.join(columns), 200)}: {fix}"
        )
    read = {*sum(wanted, ()), *INDEX, *PAIR_IDS}
    if twice := next((name for name in columns if name in read and columns.count(name) > 1), None):
        raise BadInput(f"{path}, line 1: two columns {shown(twice, 40)}: leave one of them out")
    label = next((columns.index(n) for n in task.label if labelled and n in columns), None)
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split("\t")
        problem = ""
        if len(fields) != len(columns):
            problem = f"{len(fields)} fields instead of {len(columns)}"
        elif label is not None and not fields[label]:
            problem = f"no {columns[label]}"
        if not problem:
            yield _Line(number, f"{path}, line {number}", dict(zip(columns, fields, strict=True)))
        elif malformed is None:
            raise BadInput(
                f"{path}, line {number}: {problem}: a text holds a tab or a line break, or the "
                f"line is cut: {_ADVICE[labelled and bool(task.texts)]}"
            )
        else:
            malformed.append(number)


def _json_lines(
    path: Path, lines: Sequence[str], labelled: bool, malformed: list[int] | None
) -> Iterator[_Line]:
    """Yield the objects of JSON lines; raise BadInput, or list the malformed ones."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
            if not isinstance(fields, dict):
                raise ValueError("no object")
            if "\\u" in line:  # half a character, which no file of ours could hold
                json.dumps(fields, ensure_ascii=False).encode()
        except ValueError as error:
            if malformed is None:
                raise BadInput(
                    f"{path}, line {number}: not a JSON object ({shown(error, 80)}): "
                    f"{_ADVICE[labelled]}"
                ) from error
            malformed.append(number)
            continue
        yield _Line(number, f"{path}, line {number}", fields)


def _has(columns: Names, names: Names) -> bool:
    return any(name in columns for name in names)


# -- fields ---------------------------------------------------------------------------------------
def _text(line: _Line, names: Names) -> str:
    """Return a text without line breaks, which only JSON can hold."""
    found = next((line.fields[name] for name in names if name in line.fields), None)
    if not isinstance(found, str):
        raise BadInput(f"{line.at}: no text {' or '.join(names)}: correct the line")
    return found.replace("\n", " ") if "\n" in found else found


def _label(line: _Line, task: GlueTask) -> float | None:
    """Return a class or number; None without the annotators' agreement. Raises BadInput."""
    found = next((line.fields[name] for name in task.label if name in line.fields), None)
    text = str(found)
    if text in task.unlabelled:
        return None
    if task.range is not None:
        low, high = task.range
        try:
            value = float(text) if _NUMBER.fullmatch(text) else math.nan
        except ValueError:
            value = math.nan
        if low <= value <= high and not isinstance(found, bool):
            return value
        raise BadInput(
            f"{line.at}: label {shown(repr(found), 40)} is not a number from {low:g} to {high:g}: "
            f"correct it, or name the file's task with --task"
        )
    if text in task.labels:
        return task.labels.index(text)
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(task.labels):
        return found
    raise BadInput(
        f"{line.at}: label {shown(repr(found), 40)} is none of {task.folder}'s, which are "
        f"{', '.join(task.labels)}: correct it, or name the file's task with --task"
    )


# -- our split ------------------------------------------------------------------------------------
def held_out(examples: Examples, share: float) -> NDArray[np.bool_]:
    """Return bool [N]: whether an example is held out for evaluation, by its first text alone.

    The first 64 bits of the text's sha256, as a share of 2**64, are below ``share``. Pairs with
    the same first text are so on the same side, and the split depends on no order and no seed.
    """
    limit = int(share * 2**64)
    first = {
        text: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < limit
        for text in set(examples.texts[0])
    }
    return np.array([first[text] for text in examples.texts[0]])
