# SPDX-License-Identifier: Apache-2.0
"""The attention of a run: dense, masked, or in search of a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.masks.mask import SUFFIX, AttentionMask
from bertbench.common.results.result import Result, number

_LONGEST = 60
"""Characters of a name."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Equal where the masks have the same content, or the searches the same goal."""

    key: str
    """The mask's hash; for dense attention, a search and an unknown hash the name."""
    name: str = field(compare=False)
    """A pattern, a file's name with ratio and hash, a search's goal, or ``dense``."""
    length: int | None = field(default=None, compare=False)
    sparsity_ratio: float | None = field(default=None, compare=False)
    """1 - nnz / n^2 for n = ``length``, mean over layers and heads; 0 for dense attention."""
    masked: bool = True
    searched: bool = False
    """Whether the run searched the mask, which is then a result."""

    def __str__(self) -> str:
        ratio = self.sparsity_ratio
        text = f"{self.name}, sparsity ratio "
        text += "unknown" if ratio is None else f"{100 * ratio:.2f} %"
        if self.length is not None:
            text += f" at {self.length} tokens"
        known = self.key == self.name or self.key[:8] in self.name
        return text if known else f"{text}, hash {self.key[:8]}"


DENSE = Attention(key="dense", name="dense", sparsity_ratio=0.0, masked=False)


def attention(run: Result) -> Attention:
    """Return the attention of a run, as its record has it."""
    recipe, extras = _mapping(run.config.get("recipe")), _mapping(run.manifest.get("extras"))
    text, search = recipe.get("attention_mask"), recipe.get("search")
    if isinstance(search, str) and {"lamb", "target_sparsity"} & recipe.keys():
        facts = _mapping(extras.get("mask_search"))
        name = _named(facts) or _goal(recipe)
        return _attention(facts, name, key=name, searched=True)
    if not isinstance(text, str):
        return DENSE
    facts = _mapping(extras.get("attention_mask"))
    name = _named(facts) or shown(_file(text, facts) if text.endswith(SUFFIX) else text, _LONGEST)
    key = facts.get("hash") or _pattern_hash(text) or name
    return _attention(facts, name, key=shown(key), searched=False)


def _pattern_hash(text: str) -> str | None:
    """Return the hash of a pattern, for a run that ended before it was recorded; else None."""
    try:
        return None if text.endswith(SUFFIX) else AttentionMask.of(text).hash
    except BadInput:
        return None


def _attention(facts: Mapping[str, Any], name: str, *, key: str, searched: bool) -> Attention:
    length, ratio = facts.get("length"), number(facts.get("sparsity_ratio"))
    return Attention(
        key=key,
        name=name,
        length=length if type(length) is int else None,
        sparsity_ratio=ratio if ratio is not None and 0 <= ratio <= 1 else None,
        searched=searched,
    )


def _named(facts: Mapping[str, Any]) -> str:
    name = facts.get("name")
    return shown(name, _LONGEST) if isinstance(name, str) else ""


def _file(text: str, facts: Mapping[str, Any]) -> str:
    """Return the name of a saved mask, its sparsity ratio and hash: most files are mask.json."""
    ratio, digest = number(facts.get("sparsity_ratio")), facts.get("hash")
    if ratio is None or not isinstance(digest, str):
        return PurePath(text).name
    stem = shown(PurePath(text).stem.removeprefix("attention_"), 30)
    return f"{stem} {100 * ratio:.1f} % ({digest[:8]})"


def _goal(recipe: Mapping[str, Any]) -> str:
    """Return the goal of a search: its kind, and its penalty or target."""
    target, lamb = number(recipe.get("target_sparsity")), number(recipe.get("lamb"))
    goal = "" if lamb is None else f", lambda {lamb:g}"
    goal = goal if target is None else f", target {100 * target:g} %"
    return shown(f"{recipe['search']} search{goal}", _LONGEST)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
