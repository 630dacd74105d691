# SPDX-License-Identifier: Apache-2.0
"""A GLUE task's score of one recipe, in our runner and in Hugging Face, over several seeds.

The peer is BertForSequenceClassification in a plain loop of run_glue.py's steps. It starts from our
weights, the new layer's included, and reads our batches in our order; rates, clipping and optimizer
are the recipe's. Its dropout has our seed, but other masks (ours come from a hash). Each of its
batches is computed in parts of similar length, whose gradients sum to the batch's: what padding a
batch has changes no gradient. Its rate here is therefore not run_glue.py's, which glue_speed
measures.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from bench.finetuning import Own, Peer, environment, flag, padded, parts, undemanding
from bench.quality import Comparison
from bertbench.benchmarks.glue.layout import own_column
from bertbench.benchmarks.glue.scores import score
from bertbench.common.config.recipe import plain
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256

RECIPE = "glue_mini"
WITHIN = 1.0
"""Accepted difference of the means, in points."""
SAY_EVERY_S = 30.0


class GlueQuality(Comparison):
    """All seeds' runs of a task: "own", "peer" and "own, MASK" with a sparse pattern."""

    def __init__(
        self,
        *,
        task: str,
        train: Path,
        share: float,
        epochs: float,
        mask: str | None,
        folder: Path,
        precision: str,
        attention: str,
        threads: int,
        seeds: Iterable[int],
    ) -> None:
        if not train.is_file():
            raise BadInput(f"--train_file {train}: no such file")
        self._attention, self._mask, self._score = attention, mask, own_column(task)
        same = {
            "task": task,
            "train_sha256": file_sha256(train),
            "eval_share": share,
            "epochs": epochs,
            "precision": precision,
            "attention": attention,
        }
        flags = [
            *("--backend", "cpu_ref", "--precision", precision, "--num_threads", str(threads)),
            *("--task", task, "--eval_share", str(share), "--num_train_epochs", str(epochs)),
            *flag("train_file", train.resolve()),
        ]
        sides = ("own", "peer", *([f"own, {mask}"] if mask else []))
        super().__init__(
            RECIPE, folder=folder, same=same, flags=flags, threads=threads, seeds=seeds, sides=sides
        )

    def one(
        self, side: str, flags: list[str], seed: int, say: Callable[[str], None]
    ) -> dict[str, Any]:
        if side == "peer":
            return self._peer(flags, seed, say)
        more = flag("attention_mask", None if side == "own" else self._mask)
        found = self.own_run([*flags, *more], [self._score])
        return {"score": found.pop(self._score)} | found

    def _peer(self, flags: list[str], seed: int, say: Callable[[str], None]) -> dict[str, Any]:
        begin = time.perf_counter()
        own = Own(RECIPE, flags)
        peer = Peer(own, self._attention)
        self.content["environment"] = environment(own)
        self.content["recipe"] = plain(own.task.recipe)
        self.content["examples"] = own.task.source.own
        with undemanding():
            torch.manual_seed(seed + 1)
            found = train(own, peer, lambda text: say(f"seed {seed}, peer: {text}"))
            scores = evaluate(own, peer)
        return {"score": scores[self._score]} | found | {"seconds": time.perf_counter() - begin}

    def summary(self, runs: dict[str, Any]) -> dict[str, Any]:
        return summary(runs)

    def line(self, found: dict[str, Any]) -> str:
        rate = found["training_sequences_per_second"]
        return f"{found['score']:.2f}, {found['seconds']:.0f} s, {rate:.1f} sequences/s in training"


def train(own: Own, peer: Peer, say: Callable[[str], None]) -> dict[str, Any]:
    """Train the recipe's steps; return the seconds of the steps and the last loss."""
    total, seconds, sequences, loss = own.task.total_steps, 0.0, 0, 0.0
    spoken = time.perf_counter()
    peer.model.train()
    for number, step in enumerate(itertools.islice(own.task.train_batches(None), total)):
        inputs = [p for batch in step.micro_batches for _, p in parts(padded(batch))]
        begin = time.perf_counter()
        loss = peer.train_step(inputs, number).item()
        now = time.perf_counter()
        seconds += now - begin
        sequences += step.num_samples
        if now - spoken > SAY_EVERY_S:
            spoken = now
            say(f"step {number + 1}/{total}, loss {loss:.3f}")
    return {
        "training_s": seconds,
        "training_sequences_per_second": sequences / seconds,
        "final_loss": loss,
    }


@torch.inference_mode()
def evaluate(own: Own, peer: Peer) -> dict[str, float]:
    """Return the scores, by our code, of the peer's logits on the held-out examples."""
    peer.model.eval()
    logits = []
    with peer.autocast():
        for batch in own.task.eval_batches():
            found = torch.zeros(batch.num_samples, own.task.glue.outputs)
            for rows, part in parts(padded(batch)):
                found[rows] = peer.answer(part)
            logits.append(found)
    task, part = own.task.glue, own.task.source.parts[0]
    found = torch.cat(logits).numpy()
    return score(
        task, part.column, part.features.labels, found[:, 0] if task.range else found.argmax(1)
    )


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return each side's mean, and ours - the peer's over the seeds that have both."""
    sides = dict.fromkeys(side for run in runs.values() for side in run)
    result: dict[str, Any] = {}
    for side in sides:
        pairs = [run for run in runs.values() if side in run and "peer" in run]
        if side == "peer" or not pairs:
            continue
        means = {s: statistics.mean(run[s]["score"] for run in pairs) for s in (side, "peer")}
        result[side] = {
            "seeds": len(pairs),
            "mean": means[side],
            "peer": means["peer"],
            "difference": means[side] - means["peer"],
        }
    if "own" in result:
        result["within"] = WITHIN
        # Either way: a better score, too, would show that not the same thing is computed.
        result["ok"] = abs(result["own"]["difference"]) <= WITHIN
    return result


def show(content: dict[str, Any]) -> str:
    """Return a table of all seeds: each side's score, in percent."""
    runs, found = content["runs"], content["summary"]
    sides = list(dict.fromkeys(side for run in runs.values() for side in run))
    lines = [
        f"| {content['same']['task']} | {' | '.join(sides)} |",
        "|---" * (len(sides) + 1) + "|",
    ]
    for seed, run in runs.items():
        cells = [f"{run[s]['score']:.2f}" if s in run else "" for s in sides]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    means = [
        statistics.mean(run[side]["score"] for run in runs.values() if side in run)
        for side in sides
    ]
    lines.append(f"| mean | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    for side in (s for s in sides if s in found):
        row = found[side]
        line = f"{side} - peer, {row['seeds']} seeds: {row['difference']:+.2f}"
        if side == "own":
            line += f", goal within {WITHIN:g}: {'kept' if found['ok'] else 'missed'}"
        lines += ["", line]
    return "\n".join(lines)
