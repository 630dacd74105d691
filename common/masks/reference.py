# SPDX-License-Identifier: Apache-2.0
"""Masks of the checkpoints of SparseBERT's own code (github: han-shi/SparseBERT)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bertbench.common.errors import BadInput
from bertbench.common.files import is_plain, shown
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import MAX_LENGTH

ALPHAS, MASK = "init_alphas", "mask"
"""[H, n, 2] under the model's names, keep and drop of each distance; [H, n, n], the last sample."""


def read_reference(
    path: Path, *, which: Literal["alphas", "mask"] = "alphas", diagonal: bool = False
) -> AttentionMask:
    """Return the mask of a checkpoint, shared by all layers: from its logits or its last sample.

    A distance is kept where the logit to keep is above the one to drop. ``diagonal`` adds the
    diagonal, which the reference does not protect. Nothing in the file is executed. Raises BadInput
    for another file, and for a mask that leaves a query without a key.
    """
    content = _read(path)
    found: Any = content.get(MASK)
    name, shape = MASK, "[H, n, n]"
    if which == "alphas":
        model = content.get("model", content)
        model = model if isinstance(model, Mapping) else {}
        named = [v for k, v in model.items() if str(k).rpartition(".")[2] == ALPHAS]
        found, name, shape = named[0] if len(named) == 1 else None, ALPHAS, "[H, n, 2]"
    right = (
        # Files may also hold sparse, quantised, nested and complex tensors, or shapes alone.
        isinstance(found, Tensor)
        and (found.layout, found.device.type) == (torch.strided, "cpu")
        and not (found.is_quantized or found.is_nested or found.is_complex())
        and found.ndim == 3
        and 0 < found.shape[1] <= MAX_LENGTH
        and (found.shape[2] == (2 if which == "alphas" else found.shape[1]))
    )
    if not right or not torch.isfinite(found.float()).all():
        raise BadInput(f"{shown(path)}: holds no {name} {shape}: not a checkpoint of SparseBERT's")
    values = found.float()
    heads = values[..., 0] > values[..., 1] if which == "alphas" else values > 0.5
    bits = heads.numpy().copy()
    if diagonal:
        own = (slice(None), 0) if bits.ndim == 2 else (slice(None), *np.diag_indices(bits.shape[1]))
        bits[own] = True
    try:
        return AttentionMask([list(bits)])
    except BadInput as error:
        hint = "" if diagonal else "; the diagonal can be added (--diagonal)"
        raise BadInput(f"{shown(path)}: {error}{hint}") from error


def _read(path: Path) -> Mapping[Any, Any]:
    if not is_plain(path):
        raise BadInput(f"{shown(path)}: not a plain file: name a checkpoint (.pt)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise BadInput(
            f"{shown(path)}: not a SparseBERT checkpoint (.pt) of plain tensors; nothing in it was "
            f"executed: {shown(error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise BadInput(f"{shown(path)}: holds no dictionary: not a checkpoint of SparseBERT's")
    return content
