# SPDX-License-Identifier: Apache-2.0
"""Files of questions and of answers, in SQuAD's layout or another that says the same.

Read by meaning: gzip; a byte order mark; JSON lines; the flat rows of Hugging
Face's data sets; numbers and true or false written as text, ids written as numbers. Anything else
is refused by the name of what was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bertbench.common.data.foreign import text_of
from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, read_bytes, shown

LARGEST_FILE = 256 << 20
"""Bytes of a file of questions or answers; train-v2.0.json has 42 million."""
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, slots=True)
class Question:
    """A question as in the file, its structure checked except for the answers."""

    where: str
    context: str
    id: str
    text: str
    fields: Mapping[str, Any]
    first: bool
    """Whether it is the first of its paragraph."""

    def answers(self) -> list[tuple[str, Any]]:
        """Return text and ``answer_start``, as written, of each answer; raise BadInput."""
        found = self.fields.get("answers")
        if isinstance(found, dict):
            texts, starts = found.get("text"), found.get("answer_start")
            if isinstance(texts, str) and isinstance(starts, list):
                texts = [texts]
            if isinstance(texts, list):  # columns, as Hugging Face's data sets have them
                if not isinstance(starts, list):
                    starts = [None] * len(texts) if starts is None else [starts]
                same = len(texts) == len(starts)
                rows = zip(texts, starts, strict=True) if same else ()
                found = [{"text": t, "answer_start": s} for t, s in rows] if same else None
            else:
                found = [found]
        if not isinstance(found, list) or not all(
            isinstance(answer, dict) and isinstance(answer.get("text"), str) for answer in found
        ):
            raise BadInput(f"{self.where} has no list of answers with a text")
        return [(answer["text"], answer.get("answer_start")) for answer in found]

    def is_impossible(self) -> bool | None:
        """Return the question's mark, None without one; raise BadInput for a meaningless one."""
        mark = self.fields.get("is_impossible")
        if mark is None:
            return None
        if not isinstance(mark, (bool, int, float, str)) or str(mark).strip().lower() not in _TRUTH:
            raise BadInput(f"{self.where}: is_impossible is {shown(mark, 40)}: give true or false")
        return _TRUTH[str(mark).strip().lower()]


def whole(value: Any) -> int | None:
    """Return a whole number that JSON holds as 17, 17.0 or "17"; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}(\.0)?", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        return None
    return int(value)


def read_document(path: Path, what: str, raw: bytes | None = None, **hooks: Any) -> Any:
    """Return a JSON file's content, or the list of its JSON lines.

    ``raw`` are the file's bytes where they are known, ``hooks`` those of ``json.loads``. Raises
    BadInput, calling the file ``what``, where it cannot be read or is of another format.
    """
    here = f"{what} {path}"
    try:
        raw = read_bytes(path, LARGEST_FILE) if raw is None else raw
    except OSError as error:
        raise BadInput(f"{here}: {error.strerror}: name an existing file") from error
    except ValueError as error:
        raise BadInput(f"{here}: {error}: name a JSON file") from error
    try:
        text = text_of(raw, LARGEST_FILE).strip()
        if not text:
            raise ValueError("is not JSON: it is empty; fetch it again")
    except ValueError as error:
        raise BadInput(f"{here} {error}") from error
    try:
        return parse_json(text, **hooks)
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        if error.msg == "Extra data" and lines[0].rstrip()[-1:] in ("}", "]") and error.lineno > 1:
            return _json_lines(lines, here, hooks)
        cut = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        raise BadInput(
            f"{here} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}): "
            + ("it is cut short; fetch it again" if cut else "correct it, or fetch it again")
        ) from error
    except ValueError as error:
        raise BadInput(f"{here} is not JSON that can be used: {error}") from error


def _json_lines(lines: list[str], here: str, hooks: Mapping[str, Any]) -> list[Any]:
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(parse_json(line, **hooks))
            except ValueError as error:
                at = f"{here}, line {number}"
                raise BadInput(f"{at} is not JSON: {shown(error)}: one object a line") from error
    return rows


def questions(path: Path, content: Any) -> Iterator[Question]:
    """Yield all questions of a SQuAD file's ``content`` in order.

    Raises BadInput, naming article, paragraph and question, for a part that is missing or of
    another type, and for a repeated id, which identifies predictions.
    """
    seen: dict[str, str] = {}
    here = f"SQuAD file {path}"
    for a, article in enumerate(_articles(content, here), 1):
        at_article = f"{here}: article {a}"
        if isinstance(article, dict) and isinstance(article.get("title"), str):
            at_article += f" ({shown(article['title'], 60)})"
        for p, paragraph in enumerate(_member(article, "paragraphs", list, at_article), 1):
            at_paragraph = f"{at_article}, paragraph {p}"
            context = _member(paragraph, "context", str, at_paragraph)
            for q, fields in enumerate(_member(paragraph, "qas", list, at_paragraph), 1):
                where = f"{at_paragraph}, question {q}"
                identity = identifier(_member(fields, "id", (str, int, float), where), where)
                where += f" (id {shown(identity, 60)})"
                text = _member(fields, "question", str, where)
                if identity in seen:
                    raise BadInput(
                        f"{where}: this id is also that of {seen[identity].partition(': ')[2]}: "
                        f"every question needs a unique id"
                    )
                seen[identity] = where
                yield Question(where, context, identity, text, fields, first=q == 1)


def _articles(content: Any, here: str) -> list[Any]:
    """Return the articles of SQuAD's layout, those of flat rows made here."""
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or rows is content == []:
        raise BadInput(f"{here} has no list 'data'{_found(content)}: give SQuAD's layout")
    first = rows[0] if rows and isinstance(rows[0], dict) else {}
    if {"context", "question"} <= first.keys():
        return _from_flat(rows, here)
    if first and "paragraphs" not in first:
        layout = "KorQuAD 2's" if "raw_html" in first else "another"
        raise BadInput(
            f"{here} is in {layout} layout{_found(first)}: convert it to SQuAD's, articles with "
            f"'paragraphs' of a 'context' and its 'qas', each with a list of 'answers'"
        )
    return rows


def _found(content: Any) -> str:
    """Return the names that an object has instead, for a message."""
    if not isinstance(content, dict) or not content:
        return ""
    return f" (it has {shown(', '.join(map(repr, list(content)[:8])), 120)})"


def _from_flat(rows: list[Any], here: str) -> list[Any]:
    """Return an article of flat rows: one question each, equal contexts that follow make one."""
    for number, row in enumerate(rows, 1):
        at = f"{here}: row {number}"
        _member(row, "context", str, at)
        answers = row.get("answers")
        texts = answers.get("text") if isinstance(answers, dict) else answers
        if row.get("is_impossible") is None and isinstance(texts, list):
            rows[number - 1] = {**row, "is_impossible": not texts}  # v2.0 has no other mark there
    parts = groupby(rows, key=lambda row: row["context"])
    return [{"paragraphs": [{"context": text, "qas": list(qas)} for text, qas in parts]}]


def identifier(value: str | float, where: str) -> str:
    """Return an id as text, 1.0 as 1; raise BadInput for another number, true and false."""
    number = value if isinstance(value, str) else whole(value)
    if number is None:
        raise BadInput(f"{where}: its id is {value}: give a text or a whole number")
    return str(number)


def read_answers(path: Path) -> dict[str, Any]:
    """Return question id to answer of a predictions file, as text where the file has text.

    Raises BadInput, also for one that answers a question twice, and for lists of candidates.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                raise ValueError(f"{shown(name, 60)!r} is there twice")
            made[name] = value
        return made

    here = f"predictions file {path}"
    content = read_document(path, "predictions file", object_pairs_hook=once)
    inner = content.get("predictions") if isinstance(content, dict) and len(content) == 1 else None
    content = inner if isinstance(inner, dict | list) else content
    if _is_row(content):
        content = [content]  # JSON lines of one line
    if isinstance(content, list) and content and all(_is_row(row) for row in content):
        pairs = [(identifier(row["id"], here), row["prediction_text"]) for row in content]
        try:
            content = once(pairs)
        except ValueError as error:
            raise BadInput(f"{here}: {error}") from error
    if not isinstance(content, dict):
        first = content[0] if isinstance(content, list) and content else None
        raise BadInput(
            f"{here} must be one JSON object of question ids to answers, or a list of objects "
            f"with 'id' and 'prediction_text'{_found(first)}"
        )
    for name, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise BadInput(
                f"{here} lists candidates (question {shown(name, 60)}), as nbest_predictions.json "
                f"does: give predictions.json, with one text a question"
            )
    return {name: _text_of(value) for name, value in content.items()}


def _text_of(answer: Any) -> Any:
    """Return the text of an answer in an object or a list of its own; None for an empty list."""
    if isinstance(answer, dict):
        named = [answer[key] for key in ("prediction_text", "text", "answer") if key in answer]
        answer = named[0] if len(named) == 1 else answer
    if isinstance(answer, list) and len(answer) < 2:
        only = answer[0] if answer else None
        return only if only is None or isinstance(only, str) else answer
    return answer


def _is_row(row: Any) -> bool:
    """Return whether this is an answer as Hugging Face's metrics take them."""
    return (
        isinstance(row, dict)
        and "prediction_text" in row
        and isinstance(row.get("id"), str | int | float)
    )


def _member(holder: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a part of an object; raise BadInput for one of another type."""
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, kind):
        what = "list" if kind is list else "text"
        raise BadInput(f"{where} has no {what} {key!r}: the file is damaged or not SQuAD")
    return found
