# SPDX-License-Identifier: Apache-2.0
"""The mask that a recipe names: checked against its model, put into its layers, and recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bertbench.common.config.recipe import Recipe
from bertbench.common.errors import BadInput
from bertbench.common.files import parse_json, shown
from bertbench.common.masks.mask import AttentionMask

if TYPE_CHECKING:
    from bertbench.backends.attention_costs import AttentionCosts
    from bertbench.common.model.ops import Ops

WITH_WEIGHTS = "attention_mask.json"
"""Beside exported weights: the mask that they were trained under."""
_LAYERS = "layers"
"""In a checkpoint: the layers' heads as JSON, beside the arrays that they name."""


@dataclass(frozen=True)
class RecipeMask:
    """An attention mask for sequences of up to ``length`` tokens."""

    mask: AttentionMask
    length: int

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeMask | None:
        """Return the mask of a recipe; None for dense attention.

        Raises BadInput for a mask that cannot be read or is for another model.
        """
        if recipe.attention_mask is None:
            return None
        model, length = getattr(recipe, "model", None), getattr(recipe, "max_seq_length", None)
        if model is None or length is None:
            raise BadInput("--attention_mask: the recipe has no BERT of a known length to mask")
        mask = AttentionMask.of(recipe.attention_mask)
        mask.check(layers=model.num_hidden_layers, heads=model.num_attention_heads, length=length)
        return cls(mask, length)

    def attach(self, model: nn.Module, device: torch.device) -> list[Tensor]:
        """Mask the attention of all layers of ``model``; return the masks, bool [1 or N, L, L].

        Raises BadInput for a model without attention.
        """
        layers = [part for part in model.modules() if hasattr(part, "attention_mask")]
        if not layers:
            raise BadInput("--attention_mask: the benchmark's model has no attention to mask")
        made: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            at = index if len(self.mask.layers) > 1 else 0
            if at not in made:
                bits = self.mask.layer(at, self.length)
                made[at] = torch.from_numpy(bits).to(device)
            layer.attention_mask = made[at]
        _ = self._left_out  # now, not within the timed window
        return list(made.values())

    def left_out(self, lengths: Sequence[int], *, layers: int, heads: int) -> int:
        """Return the scores that a model leaves out of sequences of ``lengths`` tokens."""
        shared = layers // len(self.mask.layers) * (heads // self.mask.heads)
        return int(self._left_out[list(lengths)].sum()) * shared

    @cached_property
    def _left_out(self) -> NDArray[np.int64]:
        """int64 [length + 1]: of a sequence of n tokens, over all layers and heads of the mask."""
        found = np.zeros(self.length + 1, np.int64)
        for index in range(len(self.mask.layers)):
            bits = self.mask.layer(index, self.length)
            for dropped in (~head for head in bits):
                # Token i brings its row up to itself, and its column above.
                brought = np.tril(dropped).sum(1) + np.triu(dropped, 1).sum(0)
                found[1:] += brought.cumsum() * (self.mask.heads // len(bits))
        return found

    def kernels(self, ops: Ops) -> dict[str, str]:
        """Return the kernels of ``ops`` with the one that computes masked attention."""
        dense, own = ops.kernels["attention"], ops.masked_kernel
        found = {**ops.kernels, "attention": f"masked-{own}"}
        if own != dense:
            before = [found["attention_passed_over"]] if "attention_passed_over" in found else []
            reasons = [*before, f"{dense}: computes no masks"]
            found["attention_passed_over"] = "; ".join(reasons)
        return found

    def note(self, ops: Ops, costs: AttentionCosts) -> str:
        """Return a line on the mask and its measured kernel for people."""
        return (
            f"attention mask {shown(self.mask.text)}: sparsity ratio "
            f"{100 * self.mask.sparsity_ratio(self.length):.2f} % at {self.length} tokens; "
            f"attention by {self.kernels(ops)['attention']}: {costs.note()}"
        )

    def facts(self, costs: AttentionCosts) -> dict[str, Any]:
        """Return the mask's facts and its kernels' measured costs for the record."""
        return {
            "attention_mask": {
                "mask": self.mask.text,
                "hash": self.mask.hash,
                "length": self.length,
                "sparsity_ratio": self.mask.sparsity_ratio(self.length),
                "cost": costs.facts(),
            }
        }


def left_out_mask(weights: Path | None, mask: AttentionMask | None) -> list[str]:
    """Return a note where a run without a ``mask`` starts from ``weights`` with one beside them."""
    beside = None if weights is None else weights.with_name(WITH_WEIGHTS)
    if mask is not None or beside is None or not beside.is_file():
        return []
    return [
        f"the weights were trained under a mask ({shown(beside, 200)}): pass --attention_mask "
        f"{shown(beside, 200)} to keep it; this run is dense"
    ]


def to_tensors(mask: AttentionMask) -> dict[str, Tensor]:
    """Return a mask as tensors for a checkpoint: uint8 [bytes] of JSON, and bool [n, n] or [n]."""
    rows, arrays = mask.content()
    text = np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8).copy()
    named = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    return {_LAYERS: torch.from_numpy(text), **named}


def from_tensors(tensors: Mapping[str, Tensor]) -> AttentionMask:
    """Return the mask that ``to_tensors`` made tensors [...] of; raises BadInput for others."""
    try:
        rows = parse_json(tensors[_LAYERS].numpy().tobytes())
        arrays = {name: t.numpy() for name, t in tensors.items() if name != _LAYERS}
        return AttentionMask.from_content(rows, arrays)
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(f"the checkpoint's attention mask is damaged: {shown(error)}") from error


def check_same(mask: AttentionMask | None, saved: Mapping[str, Tensor] | None) -> None:
    """Raise BadInput where a checkpoint's ``saved`` tensors [...] are of another mask."""
    before = None if saved is None else from_tensors(saved).hash
    if before != (None if mask is None else mask.hash):
        raise BadInput(
            "the checkpoint's attention mask is not this run's: give the mask that it was made with"
        )
