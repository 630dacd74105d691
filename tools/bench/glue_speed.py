# SPDX-License-Identifier: Apache-2.0
"""Sequences/s of GLUE training, ours and Hugging Face's, in turns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.finetuning import (
    ATTENTIONS,
    Own,
    Peer,
    environment,
    flag,
    padded,
    real_share,
    undemanding,
)
from bench.glue_quality import RECIPE
from bench.squad_speed import compare, own_steps, peer_steps, share_of_all, show, typical_steps
from bench.steps import Step
from bench.timing import interleave
from bertbench.common.files import file_sha256

__all__ = ["show", "speed"]


def speed(
    *, task: str, train: Path, precision: str, batches: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Return the table's figures; a turn is ``batches`` typical optimizer steps, all prepared."""
    own = Own(RECIPE, [
        *("--backend", "cpu_ref", "--precision", precision, "--seed", str(seed), "--no_do_eval"),
        *("--task", task), *flag("train_file", train),
    ])  # fmt: skip
    recipe = own.task.recipe
    steps, lengths = typical_steps(own, recipe.global_batch, batches)
    used = [step.micro_batches[0] for step in steps]
    peers = {name: Peer(own, name) for name in ATTENTIONS}
    turns: dict[str, Step] = {"own": own_steps(own, steps)}
    fixed = []
    for room in (recipe.max_seq_length, None):
        for name, peer in peers.items():
            label = name if room is None else f"{name}-{room}"
            fixed += [] if room is None else [label]
            turns[label] = undemanding()(peer_steps(peer, [padded(b, room) for b in used]))
    before = os.getloadavg()[0]
    seconds = interleave(turns, rounds)
    return {
        "environment": environment(own),
        "data": {train.name: file_sha256(train)},
        "rounds": rounds,
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "training": compare(seconds, sum(b.num_samples for b in used), fixed)
        | {
            "batch": recipe.global_batch,
            "batches": len(used),
            "tokens": sum(b.num_tokens for b in used),
            "real_share": real_share(used),
            "real_share_of_all": share_of_all(lengths, recipe.global_batch),
            "real_share_at_full_length": real_share(used, recipe.max_seq_length),
        },
    }
