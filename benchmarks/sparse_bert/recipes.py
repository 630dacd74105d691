# SPDX-License-Identifier: Apache-2.0
"""The named recipes of Sparse BERT. Pure data: importing this does not import torch.

Each row of SparseBERT's table (Shi et al. 2021) is one: eight searches and six fixed patterns, with
the values of its scripts/run_pretraining.sh (first phase; 8 V100). DAM_u learns single entries of
the mask, DAM_s whole distances.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from bertbench.benchmarks.bert_pretraining.recipes import (
    PretrainingOptions,
    PretrainingRecipe,
    mini,
)
from bertbench.benchmarks.phases.recipes import nvidia
from bertbench.common.config.recipe import Impl, Preset
from bertbench.common.model.config import BERT_BASE

Kind = Literal["structured", "unstructured"]
LAMB = 5e-5
"""The default of SparseBERT's run_pretraining.py."""
LAMBDAS = ("1e-4", "1e-3", "1e-2", "1e-1")
FIXED = ("strided", "fixed", "longformer", "logsparse", "bigbird", "star")


@dataclass(frozen=True, kw_only=True)
class SparseRecipe(PretrainingRecipe):
    """Pretraining that also learns the attention mask; without a search, with a given one."""

    search: Kind | None = None
    """Learn which distances between tokens (structured, DAM_s) or which entries of the mask
    (unstructured, DAM_u) may attend; None: --attention_mask, or dense."""
    lamb: float | None = None
    """Penalty of a search: this times the number of entries that are kept, summed over layers and
    heads (SparseBERT's --lamb)."""
    target_sparsity: float | None = None
    """Instead of lamb: the sparsity ratio that a search is to meet, 1 - kept / n^2."""
    target_weight: float = 0.1
    """Penalty of a search for each unit of distance from target_sparsity."""
    search_start: float = 0.5
    """Probability with which a search keeps each cell at first (the reference: a half)."""
    search_ramp: float = 0.0
    """Share of max_steps in which target_sparsity is approached."""
    search_block: int = 1
    """Learn blocks of this many tokens a side, or bands of this many distances."""
    search_window: int | None = None
    """Neighbours of each side that a search always keeps (0: the diagonal); None: none."""
    search_globals: str | None = None
    """Tokens whose rows and columns a search always keeps, joined by +; 0 is [CLS]."""
    search_per_layer: bool = False
    """Learn a mask for each layer; the reference shares one among all layers."""
    search_rate: float = 1.0
    """The mask's logits learn at this times the learning rate."""
    search_temperature: float = 1.0
    """Of the sampler at the start."""
    search_end_temperature: float = 1.0
    """Of the sampler at max_steps, reached by a constant factor."""

    @property
    def global_tokens(self) -> tuple[int, ...]:
        """search_globals as numbers; raises ValueError where they are none."""
        words = [] if self.search_globals is None else self.search_globals.split("+")
        if not all(re.fullmatch("[0-9]{1,5}", word) for word in words):
            raise ValueError(f"--search_globals {self.search_globals!r}: give tokens joined by +")
        return tuple(map(int, words))

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.global_tokens
        penalties = [
            name for name in ("lamb", "target_sparsity") if getattr(self, name) is not None
        ]
        if self.search is None:
            own = [f for f in fields(self) if f.name.startswith("search_")]
            penalties += [f.name for f in own if getattr(self, f.name) != f.default]
            if penalties:
                raise ValueError(f"--{penalties[0]} is of a mask search: give --search as well")
        elif self.attention_mask is not None:
            raise ValueError(
                "--search learns the mask that --attention_mask gives: leave one of them out"
            )
        elif len(penalties) != 1:
            raise ValueError("--search needs one of --lamb and --target_sparsity")


def _sparse(base: PretrainingRecipe, **own: Any) -> SparseRecipe:
    """Return a recipe of pretraining with the values ``own`` set or added."""
    values = {f.name: getattr(base, f.name) for f in fields(PretrainingRecipe)}
    return SparseRecipe(**values | own)


def search_mini() -> SparseRecipe:
    """``mini`` of pretraining, with a search for a mask that keeps a tenth of the scores."""
    return _sparse(
        mini(),
        target_mlm_accuracy=None,
        search="structured",
        target_sparsity=0.9,
        search_start=0.9,
        search_ramp=0.6,
        search_window=1,
        search_rate=10.0,
    )


def _preset(name: str, summary: str, phase: int = 1, **own: Any) -> Preset:
    """Return a row of the table: NVIDIA's two-phase pretraining of BERT-base, as SparseBERT's."""
    first = phase == 1
    every = 200 * (65_536 if first else 32_768)  # its save_checkpoint_steps
    evaluations = {"eval_iter_start_samples": every, "eval_iter_samples": every}
    recipe = _sparse(nvidia(phase, BERT_BASE), **evaluations, **own)
    return Preset(
        name=f"sparse_bert_{name}",
        benchmark="sparse_bert",
        summary=summary,
        recipe=recipe,
        impl=Impl(max_micro_batch=64 if first else 8, eval_batch_size=128),
        run=PretrainingOptions(),
        data=f"samples of {128 if first else 512} tokens: a folder made by `bertbench data "
        f"prepare`, given by --data, or NVIDIA's *training*.hdf5 by --input_dir",
        duration="days on eight accelerators; --global_batch and --max_steps shorten it",
    )


def _rows() -> Iterator[Preset]:
    yield _preset("dense", "SparseBERT's setting without a mask")
    kinds: tuple[Kind, ...] = ("unstructured", "structured")
    for kind in kinds:
        for lamb in LAMBDAS:
            row = f"DAM_{kind[0]}, lambda {lamb}: search over {kind} masks"
            yield _preset(
                f"dam_{kind[0]}_{lamb}", f"SparseBERT's {row}", search=kind, lamb=float(lamb)
            )
    for name in FIXED:
        yield _preset(name, f"SparseBERT's row {name}: a fixed mask", attention_mask=name)
    for phase in (1, 2):
        summary = f"phase {phase} of scripts/run_pretraining.sh with --lamb: a structured search"
        yield _preset(f"phase{phase}", summary, phase, search="structured", lamb=LAMB)


_MINI = Preset(
    name="sparse_bert_mini",
    benchmark="sparse_bert",
    summary="search a mask with a 4 x 256 BERT on Wikipedia summaries, on a laptop",
    recipe=search_mini(),
    impl=Impl(max_micro_batch=16, eval_batch_size=64),
    run=PretrainingOptions(log_freq=20, num_samples_per_checkpoint=6_400),
    data="downloaded (5 MB) and prepared by itself, or --text PATH",
    duration="about half an hour on 2 CPU cores",
)
PRESETS = {preset.name: preset for preset in (_MINI, *_rows())}
