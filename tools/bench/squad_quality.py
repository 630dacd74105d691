# SPDX-License-Identifier: Apache-2.0
"""EM and F1 of one SQuAD recipe, in our runner and in Hugging Face, over several seeds.

The peer starts from our weights, the new layer's included, and reads our batches in our order. Its
learning rates, clipping and optimizer are the recipe's; its dropout has our seed, but other masks
(ours come from a hash). Our code turns its logits into answers and scores. To save padding, each of
its batches is computed in parts of similar length (``PART``), whose gradients sum to the batch's.
Its throughput is therefore not run_qa.py's, which squad_speed measures.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.finetuning import (
    PART,
    Own,
    Peer,
    environment,
    flag,
    padded,
    parts,
    undemanding,
    unpadded,
)
from bench.quality import Comparison
from bertbench.benchmarks.bert_squad.outputs import PREDICTIONS
from bertbench.benchmarks.bert_squad.scoring import answer_and_score
from bertbench.common.config.recipe import plain
from bertbench.common.errors import BadInput
from bertbench.common.files import file_sha256, write_atomic
from bertbench.common.training.checkpoint import (
    Checkpoints,
    flatten_optimizer,
    rank_group,
    restore_optimizer,
)

RECIPE = "squad_mini"
SAY_EVERY_S = 30.0
SAVE_EVERY_S = 300.0
SIDES = ("own", "peer")
SCORES = ("exact_match", "f1")
WITHIN = 1.0
"""Accepted difference of the means, in points of F1."""


class Quality(Comparison):
    """All seeds' runs, ours and the peer's."""

    def __init__(
        self,
        *,
        train: Path,
        predict: Path,
        folder: Path,
        precision: str,
        attention: str,
        threads: int,
        limit: int | None,
        seeds: Iterable[int],
        sides: Iterable[str] = SIDES,
    ) -> None:
        self._attention = attention
        files = {"train": train, "predict": predict}
        for name, path in files.items():
            if not path.is_file():
                raise BadInput(f"--{name} {path}: no such file")
        same = {
            **{f"{name}_sha256": file_sha256(path) for name, path in files.items()},
            "limit": limit,
            "precision": precision,
            "attention": attention,
        }
        folder.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            files = {n: limited(p, limit, folder / f"limited-{n}.json") for n, p in files.items()}
        flags = [
            *("--backend", "cpu_ref", "--precision", precision, "--num_threads", str(threads)),
            *flag("train_file", files["train"]),
            *flag("predict_file", files["predict"]),
        ]
        super().__init__(
            RECIPE, folder=folder, same=same, flags=flags, threads=threads, seeds=seeds, sides=sides
        )

    def one(
        self, side: str, flags: list[str], seed: int, say: Callable[[str], None]
    ) -> dict[str, Any]:
        if side == "own":
            return self.own_run([*flags, "--no_write_nbest"], SCORES)
        return self._peer(flags, seed, say)

    def summary(self, runs: dict[str, Any]) -> dict[str, Any]:
        return summary(runs)

    def line(self, found: dict[str, Any]) -> str:
        return run_line(found)

    def _peer(self, flags: list[str], seed: int, say: Callable[[str], None]) -> dict[str, Any]:
        begin = time.perf_counter()
        own = Own(RECIPE, flags)
        peer = Peer(own, self._attention)
        self.content["environment"] = environment(own)
        self.content["recipe"] = plain(own.task.recipe)
        kept = self._folder / f"peer-{seed}"
        kept.mkdir(exist_ok=True)
        saved = Checkpoints(kept / "checkpoints", keep=1)
        same = self.content["same"] | {"seed": seed}
        with undemanding():
            torch.manual_seed(seed + 1)  # as SquadTask does before training
            found = train_peer(own, peer, saved, same, lambda t: say(f"seed {seed}, peer: {t}"))
            found |= answer_peer(own, peer, lambda t: say(f"seed {seed}, peer: {t}"))
        logits = found.pop("logits")
        with tempfile.TemporaryDirectory() as nowhere:
            answers, scores, _ = answer_and_score(
                own.task.source, own.task.recipe, own.task.run, logits, Path(nowhere)
            )
        write_atomic(kept / PREDICTIONS, json.dumps(answers.predictions, indent=4) + "\n")
        shutil.rmtree(saved.folder)
        found = {name: scores[name] for name in SCORES} | found
        if not found["resumed"]:  # the time of earlier processes is unknown
            found["seconds"] = time.perf_counter() - begin
        return found | {"sequences_at_once": PART, "record": self.relative(kept)}


@dataclass
class Trained:
    """A peer's progress; the seconds are of the steps, without making batches."""

    step: int = 0
    position: dict[str, int] | None = None
    training_s: float = 0.0
    sequences: int = 0
    loss: float | None = None


def train_peer(
    own: Own, peer: Peer, saved: Checkpoints, same: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Train the recipe's steps from ``saved``'s state; raise BadInput if it is another run's."""
    at = restore(own, peer, saved, same)
    resumed = at.step > 0
    if resumed:
        say(f"resumes after step {at.step}")
    total = own.task.total_steps
    spoken = kept = time.perf_counter()
    peer.model.train()
    with contextlib.closing(own.task.train_batches(at.position)) as steps:
        while at.step < total:
            step = next(steps)
            inputs = [p for batch in step.micro_batches for _, p in parts(padded(batch))]
            begin = time.perf_counter()
            at.loss = peer.train_step(inputs, at.step).item()
            now = time.perf_counter()
            at.step, at.position = at.step + 1, step.position
            at.training_s += now - begin
            at.sequences += step.num_samples
            if now - spoken > SAY_EVERY_S:
                give_back_memory()
                spoken = time.perf_counter()
                left = at.training_s / at.step * (total - at.step) / 60
                say(
                    f"step {at.step}/{total}, loss {at.loss:.3f}, "
                    f"{at.sequences / at.training_s:.1f} sequences/s, {left:.1f} min of training "
                    f"left"
                )
            if now - kept > SAVE_EVERY_S or at.step == total:
                kept = now
                save(own, peer, saved, same, at)
    return {
        "training_s": at.training_s,
        "training_sequences_per_second": at.sequences / at.training_s,
        "final_loss": at.loss,
        "resumed": resumed,
    }


def save(own: Own, peer: Peer, saved: Checkpoints, same: dict[str, Any], at: Trained) -> None:
    """Save the state that the steps after ``at`` depend on."""
    tensors, values = flatten_optimizer(peer.optimizer)
    groups = {"model": peer.model.state_dict(), "optimizer": tensors}
    groups[rank_group(0)] = own.backend.rng_state()
    saved.save(at.step, groups, {"same": same, "optimizer": values, "at": asdict(at)})


def restore(own: Own, peer: Peer, saved: Checkpoints, same: dict[str, Any]) -> Trained:
    """Restore the newest state, if any; raise BadInput if it is another run's."""
    if saved.latest() is None:
        return Trained()
    groups, state = saved.load()
    if state["same"] != same:
        raise BadInput(
            f"{saved.folder} is of a run with other files or options: delete it, or give another "
            f"--output"
        )
    peer.model.load_state_dict(groups["model"])
    restore_optimizer(peer.optimizer, groups["optimizer"], state["optimizer"])
    own.backend.set_rng_state(groups[rank_group(0)])
    return Trained(**state["at"])


@torch.inference_mode()
def answer_peer(own: Own, peer: Peer, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the logits of all features' tokens, and their rate."""
    batches = own.task.eval_batches()
    seconds, sequences, spoken = 0.0, 0, time.perf_counter()
    found = []
    peer.model.eval()
    with peer.autocast():
        for number, batch in enumerate(batches):
            inputs = padded(batch)
            logits = torch.zeros(*inputs["input_ids"].shape, 2)
            begin = time.perf_counter()
            for rows, part in parts(inputs):
                logits[rows, : part["input_ids"].shape[1]] = peer.answer(part)
            now = time.perf_counter()
            seconds += now - begin
            sequences += batch.num_samples
            found.append(unpadded(logits, batch))
            if now - spoken > SAY_EVERY_S:
                give_back_memory()
                spoken = time.perf_counter()
                left = seconds / (number + 1) * (len(batches) - number - 1) / 60
                say(f"batch {number + 1}/{len(batches)} answered, {left:.1f} min left")
    return {
        "inference_sequences_per_second": sequences / seconds,
        "logits": torch.cat(found).numpy(),
    }


def give_back_memory() -> None:
    """Return freed memory, which cpu_ref keeps and which varying lengths fragment."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def limited(path: Path, number: int, target: Path) -> Path:
    """Write ``path`` with about ``number`` of its questions, spread over the file; return it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    everything = [p for article in content["data"] for p in article["paragraphs"]]
    count = sum(len(p["qas"]) for p in everything)
    at = 0
    for paragraph in everything:
        kept = []
        for question in paragraph["qas"]:
            # where number * at / count passes a whole number
            if (at + 1) * number // count > at * number // count:
                kept.append(question)
            at += 1
        paragraph["qas"] = kept
    for article in content["data"]:
        article["paragraphs"] = [p for p in article["paragraphs"] if p["qas"]]
    write_atomic(target, json.dumps(content))
    return target


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Return means over the seeds with both sides, and ours - the peer's."""
    pairs = [run for run in runs.values() if all(side in run for side in SIDES)]
    if not pairs:
        return {"seeds": 0}
    result: dict[str, Any] = {"seeds": len(pairs)}
    for name in SCORES:
        means = {side: statistics.mean(run[side][name] for run in pairs) for side in SIDES}
        apart = [run["own"][name] - run["peer"][name] for run in pairs]
        result[name] = means | {"difference": means["own"] - means["peer"], "by_seed": apart}
    result["within"] = WITHIN
    result["ok"] = abs(result["f1"]["difference"]) <= WITHIN
    return result


def run_line(found: dict[str, Any]) -> str:
    """Return one run as a line."""
    rates = [
        f"{found[name]:.1f} sequences/s in {what}"
        for what in ("training", "inference")
        if (name := f"{what}_sequences_per_second") in found
    ]
    head = f"EM {found['exact_match']:.2f}, F1 {found['f1']:.2f}"
    took = [f"{found['seconds']:.0f} s"] if "seconds" in found else []
    return ", ".join((head, *took, *rates))


def show(content: dict[str, Any]) -> str:
    """Return a table of all runs."""
    lines = [
        "| seed | EM ours | EM peer | F1 ours | F1 peer | F1 ours - peer | s ours | s peer |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def cells(own: dict[str, Any], peer: dict[str, Any]) -> list[str]:
        scores = [f"{side[name]:.2f}" for name in SCORES for side in (own, peer)]
        seconds = [f"{side['seconds']:.0f}" if "seconds" in side else "" for side in (own, peer)]
        return [*scores, f"{own['f1'] - peer['f1']:+.2f}", *seconds]

    for seed, run in content["runs"].items():
        if all(side in run for side in SIDES):
            lines.append(f"| {' | '.join((seed, *cells(run['own'], run['peer'])))} |")
    found = content["summary"]
    if found["seeds"]:
        means = [{name: found[name][side] for name in SCORES} for side in SIDES]
        lines.append(f"| {' | '.join(('mean', *cells(means[0], means[1])))} |")
        apart, ok = found["f1"]["difference"], found["ok"]
        lines += [
            "",
            f"difference of mean F1 {apart:+.2f}, goal {WITHIN:g}: {'kept' if ok else 'missed'}",
        ]
    codes = {side["code_hash"] for run in content["runs"].values() for side in run.values()}
    if len(codes) > 1:
        lines.append(f"note: the code changed between these runs ({', '.join(sorted(codes))})")
    return "\n".join(lines)
