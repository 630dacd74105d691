# SPDX-License-Identifier: Apache-2.0
"""Sequences/s of SQuAD training and inference, ours and Hugging Face's, in turns."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from bench.squad_quality import RECIPE
from bench.steps import Step
from bench.timing import cell, interleave, spread
from bertbench.benchmarks.bert_squad.model import SpanBatch
from bertbench.benchmarks.bert_squad.stream import answer_batches
from bertbench.common.files import file_sha256
from bertbench.common.training.step import train_step
from bertbench.common.training.stops import Faults

GOAL = 2.5
CANDIDATES = 64
"""Number of optimizer steps from which typical ones are chosen."""
PRODUCTS = "products"


def speed(
    *,
    train: Path | None,
    predict: Path | None,
    precision: str,
    batch: int,
    eval_batch: int,
    batches: int,
    eval_batches: int,
    rounds: int,
    seed: int,
    fixed: bool,
) -> dict[str, Any]:
    """Return both tables' figures; without files for synthetic tokens with SQuAD's dev lengths.

    A turn is ``batches`` optimizer steps, or ``eval_batches`` in the file's order, all prepared.
    Ours are steps of the training loop and its evaluation's forward passes. No side's time includes
    tokenization, collation or the search for answers. ``fixed`` adds the peer on batches padded to
    384, the default of Hugging Face's run_qa.py.
    """
    own = Own(RECIPE, [
        *("--backend", "cpu_ref", "--precision", precision, "--seed", str(seed)),
        *("--global_batch", str(batch), "--micro_batch", str(batch)),
        *("--eval_batch_size", str(eval_batch), *(["--synthetic"] if train is None else [])),
        *flag("train_file", train), *flag("predict_file", predict),
    ])  # fmt: skip
    peers = _peers(own, fixed)
    steps, trained = typical_steps(own, batch, batches)
    features = (own.task.source.predict or own.task.source.train).features
    rows = typical(features.lengths, eval_batch, eval_batches)
    answered = answer_batches(features, rows, eval_batch)
    micro = [step.micro_batches[0] for step in steps]
    result: dict[str, Any] = {
        "environment": environment(own),
        "data": {p.name: file_sha256(p) for p in (train, predict) if p is not None}
        or own.task.source.description,
        "rounds": rounds,
        "load_before": os.getloadavg()[0],  # of the last minute, with this process
    }
    for what, run, peer_run, times, used, every, size in (
        ("training", own_steps(own, steps), peer_steps, 3, micro, trained, batch),
        ("inference", _own_answers(own, answered), _peer_answers, 1, answered, features.lengths,
         eval_batch),
    ):  # fmt: skip
        turns: dict[str, Step] = {"own": run}
        for name, (peer, room) in peers.items():
            turns[name] = undemanding()(peer_run(peer, [padded(b, room) for b in used]))
        turns[PRODUCTS] = products(own, used, times)
        seconds = interleave(turns, rounds)
        result[what] = compare(seconds, sum(b.num_samples for b in used), ATTENTIONS) | {
            "batch": size,
            "batches": len(used),
            "tokens": sum(b.num_tokens for b in used),
            "real_share": real_share(used),
            "real_share_of_all": share_of_all(every, size),
        }
    if predict is None:
        # A real file's neighbours share a paragraph and need less padding: synthetic favours us.
        result["inference"] |= {"goal": None, "ok": None}
    return result | {"load_after": os.getloadavg()[0]}


def _peers(own: Own, fixed: bool) -> dict[str, tuple[Peer, int | None]]:
    """Return name -> peer and the length to pad to; None: the longest of the batch."""
    peers: dict[str, tuple[Peer, int | None]] = {a: (Peer(own, a), None) for a in ATTENTIONS}
    length = own.task.recipe.max_seq_length
    if fixed:
        peers |= {f"{a}-{length}": (peers[a][0], length) for a in ATTENTIONS}
    return peers


def typical_steps(own: Own, batch: int, batches: int) -> tuple[list[Any], np.ndarray]:
    """Return typical steps, and the lengths of all from which they were chosen."""
    with contextlib.closing(own.task.train_batches(None)) as stream:
        shuffled = list(itertools.islice(stream, CANDIDATES))
    lengths = np.concatenate([step.micro_batches[0].tokens.lengths for step in shuffled])
    return [shuffled[row // batch] for row in typical(lengths, batch, batches)[::batch]], lengths


def products(own: Own, batches: list[SpanBatch], times: int) -> Step:
    """Return our matrix products alone: the machine's lower bound for a turn.

    Every linear layer on the real tokens, and attention's two products per sequence; ``times`` is
    3 for training, where each has two gradients.
    """
    config = own.task.recipe.model
    dtype = torch.bfloat16 if own.plan.precision == "bf16" else torch.float32
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layer = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    size = hidden // heads

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    most = max(b.num_tokens for b in batches)
    longest = max(b.tokens.max_length for b in batches)
    operands = [(matrix(most, k), matrix(n, k).t()) for k, n in layer]
    q, scores = matrix(heads, longest, size), matrix(heads, longest, longest)

    @torch.no_grad()
    def run() -> None:
        for batch, _ in itertools.product(batches, range(config.num_hidden_layers * times)):
            for x, weight in operands:
                torch.mm(x[: batch.num_tokens], weight)
            for n in batch.tokens.lengths:
                torch.bmm(q[:, :n], q[:, :n].transpose(1, 2))
                torch.bmm(scores[:, :n, :n], q[:, :n])

    return run


def typical(lengths: np.ndarray, size: int, most: int) -> np.ndarray:
    """Return the rows of up to ``most`` typical batches of ``size``, in the file's order.

    ``lengths`` is [rows]. The file's batches are sorted by their share of padding and cut into
    ``most`` parts; the middle batch of each is taken.
    """
    whole = len(lengths) // size
    if not whole:
        return np.arange(len(lengths))
    table = lengths[: whole * size].reshape(whole, size)
    ranked = np.argsort(table.mean(axis=1) / table.max(axis=1), kind="stable")
    number = min(most, whole)
    chosen = np.sort(ranked[(np.arange(number) * 2 + 1) * whole // (2 * number)])
    return (chosen[:, None] * size + np.arange(size)).reshape(-1)


def share_of_all(lengths: np.ndarray, size: int) -> float:
    """Return the share of real tokens in all whole batches of ``lengths`` [rows]."""
    table = lengths[: len(lengths) // size * size].reshape(-1, size)
    return float(table.sum() / (table.max(axis=1).sum() * size)) if table.size else 1.0


def own_steps(own: Own, steps: list[Any]) -> Step:
    """Return a turn of our training loop's steps."""

    task, backend = own.task, own.backend
    scaler = backend.grad_scaler(own.plan.precision, own.plan.init_loss_scale)
    faults = Faults(backend.device)

    def run() -> None:
        task.model.train()
        for number, step in enumerate(steps):
            for group in task.optimizer.param_groups:
                group["lr"] = task.learning_rate(number)
            train_step(task, task.model, step, backend, own.world, own.plan, scaler, faults)
        faults.check()

    return run


def peer_steps(peer: Peer, inputs: list[Any]) -> Step:
    """Return a turn of the peer's optimizer steps, one for each of ``inputs``."""

    def run() -> None:
        peer.model.train()
        for number, each in enumerate(inputs):
            peer.train_step([each], number)

    return run


def _own_answers(own: Own, batches: list[Any]) -> Step:
    task, backend = own.task, own.backend

    @torch.no_grad()
    def run() -> None:
        task.model.eval()
        for batch in batches:
            with backend.precision(own.plan.precision):
                task.model(batch)

    return run


def _peer_answers(peer: Peer, inputs: list[Any]) -> Step:
    inputs = [{k: v for k, v in each.items() if "positions" not in k} for each in inputs]

    @torch.inference_mode()
    def run() -> None:
        peer.model.eval()
        with peer.autocast():  # around all of them: the weights are cast once
            for each in inputs:
                peer.answer(each)

    return run


def compare(
    seconds: dict[str, list[float]], sequences: int, peers: Sequence[str]
) -> dict[str, Any]:
    """Return rates, and ratios to "own", from the seconds of ``sequences`` in each round.

    The peer is the one of ``peers`` with the fastest median.
    """
    best = min(peers, key=lambda name: statistics.median(seconds[name]))
    ratios = {
        name: [theirs / ours for theirs, ours in zip(taken, seconds["own"], strict=True)]
        for name, taken in seconds.items()
        if name != "own"
    }
    return {
        "sequences": sequences,
        "seconds": seconds,
        "sequences_per_second": {
            name: spread([sequences / s for s in taken]) for name, taken in seconds.items()
        },
        "over": {name: spread(found) for name, found in ratios.items()},
        "peer": best,
        "goal": GOAL,
        "ok": statistics.median(ratios[best]) >= GOAL,
    }


def show(result: dict[str, Any]) -> str:
    """Return a table of training, and one of inference where it was measured."""

    verdicts = {
        True: f"goal {GOAL:g}: reached",
        False: f"goal {GOAL:g}: missed",
        None: "overestimated: batches of a real file have less padding",
    }
    lines = []
    for what in ("training", "inference"):
        if what not in result:
            continue
        row = result[what]
        lines += [
            f"{what}: {row['batches']} batches of {row['batch']}, {row['real_share']:.0%} of the "
            f"padded tokens are real (of all batches: {row['real_share_of_all']:.0%})",
            "",
            "| | sequences/s | ours is x times as fast |",
            "|---|---|---|",
        ]
        for name, rate in row["sequences_per_second"].items():
            over = cell(row["over"][name], 2) if name in row["over"] else ""
            if name == row["peer"]:
                over += f", {verdicts[row['ok']]}"
            lines.append(f"| {name} | {cell(rate, 1)} | {over} |")
        lines.append("")
    return "\n".join(lines)
