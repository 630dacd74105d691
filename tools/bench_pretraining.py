# SPDX-License-Identifier: Apache-2.0
"""Compare BERT pretraining on cpu_ref with its peer and with the machine's limit.

    python tools/bench_pretraining.py [--shapes mini,base-512] [--quick] [--json FILE]

Per shape and precision that this processor has instructions for, whole training steps with dropout
0.1: forward, backward, clipping, torch's fused AdamW, on one typical micro-batch. The variants run
in turns in one process, with one allocator setting.

* tokens/s: real tokens (no padding) of the batch / median seconds of a step.
* peer: Hugging Face BertForPreTraining in the same precision (bf16: autocast), dropout on, padded
  to the longest sequence of the batch; the faster of its SDPA and eager attention.
* replay: the step's matrix products alone, in the same precision through torch.
* x peer, of replay: median over the rounds of the paired ratio; the goals are bf16's.

Section `profile`: where the seconds of a step go, by kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bench import sections
from bench.kernel_times import kernel_times
from bench.loop import loop
from bench.shapes import SHAPES, Shape, typical_batch
from bench.steps import PEER_MISSING, own_step, peer_available, peer_step, replay_step
from bench.timing import interleave, ratio

from bertbench.backends.cpu_ref.allocator import keep_freed_memory
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.cpu_ref.kernels import NativeOps

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRECISIONS = CpuRef().capabilities.precisions
SECTIONS = ["lamb", "ranks", "load", "loop", "profile"]


def main() -> None:
    arguments = parse()
    allocator = keep_freed_memory()
    heading = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": allocator,
        "kernels": {p: dict(NativeOps(DTYPES[p]).kernels) for p in PRECISIONS},
    }
    print(f"{heading}\n")
    if not peer_available():
        print(PEER_MISSING)
    rows = []
    columns = "shape", "precision", "batch", "real tokens", "tokens/s", "peer"
    print(f"| {' | '.join(columns)} | x peer (goal) | of replay (goal) |\n{'|---' * 8}|")
    turns = [(SHAPES[name], p) for name in arguments.shapes for p in arguments.precisions]
    for shape, precision in turns:
        row = measure(shape, precision, arguments.data, arguments.quick)
        rows.append(row)
        print(show(row), flush=True)
    result: dict[str, Any] = {"environment": heading, "steps": rows}
    if "profile" in arguments.sections:
        print("\nMilliseconds of one step, by kernel:")
        result["profile"] = {}
        for shape, precision in turns:
            batch, _ = typical_batch(shape, arguments.data)
            dtype = DTYPES[precision]
            step = own_step(shape.config, batch, NativeOps(dtype), dtype)
            found = kernel_times(step, 3 if arguments.quick else 10)
            result["profile"][f"{shape.name} {precision}"] = found
            print(f"{shape.name} {precision}: {readable(found)}", flush=True)
    if "lamb" in arguments.sections:
        result["lamb"] = sections.lamb(3 if arguments.quick else 7)
        print(f"\nLAMB, one step: {readable(result['lamb'])}", flush=True)
    if "ranks" in arguments.sections:
        result["two_ranks"] = sections.two_ranks("4x256-512", 1 if arguments.quick else 3)
        print(f"\nTwo ranks x one thread, gloo: {readable(result['two_ranks'])}")
    if "load" in arguments.sections:
        result["load"] = sections.load("mini", 1 if arguments.quick else 3)
        print(f"\nTwo threads beside other work: {readable(result['load'])}", flush=True)
    if "loop" in arguments.sections:
        result["loop"] = loop(1 if arguments.quick else 3)
        print(f"\nThe loop over the bare step (mini): {readable(result['loop'])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=names, default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--precisions", type=names, default=PRECISIONS, help=", ".join(PRECISIONS))
    parser.add_argument("--sections", type=names, default=SECTIONS, help=", ".join(SECTIONS))
    parser.add_argument("--data", type=Path, help="take the lengths from this prepared data set")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one peer variant")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    for what, known in {"shapes": SHAPES, "precisions": PRECISIONS, "sections": SECTIONS}.items():
        unknown = set(getattr(arguments, what)) - set(known)
        if unknown:
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return arguments


def measure(shape: Shape, precision: str, data: Path | None, quick: bool) -> dict[str, Any]:
    """Measure all variants of one shape in one precision, in turns."""
    batch, source = typical_batch(shape, data)
    dtype = DTYPES[precision]
    variants = {
        "own": own_step(shape.config, batch, NativeOps(dtype), dtype),
        "replay": replay_step(shape.config, batch, dtype),
    }
    peers = []
    if peer_available():
        peers = ["sdpa"] if quick else ["sdpa", "eager"]
        variants |= {peer: peer_step(shape.config, batch, peer, dtype) for peer in peers}
    large = shape.hidden > 256
    rounds = (2 if large else 5) if quick else (4 if large else 11)
    seconds = interleave(variants, rounds)
    tokens = batch.tokens.num_tokens
    row: dict[str, Any] = {
        "shape": shape.name,
        "precision": precision,
        "batch": shape.batch,
        "source": source,
        "tokens": tokens,
        "real_share": tokens / (shape.batch * shape.length),
        "rounds": rounds,
        "tokens_per_second": {k: tokens / statistics.median(v) for k, v in seconds.items()},
        "of_replay": ratio(seconds["replay"], seconds["own"]),
        "of_replay_goal": shape.of_replay if precision == "bf16" else None,
    }
    if peers:
        best = min(peers, key=lambda peer: statistics.median(seconds[peer]))
        row |= {"peer": best, "over_peer": ratio(seconds[best], seconds["own"])}
        row["over_peer_goal"] = shape.over_peer if precision == "bf16" else None
    return row


def show(row: dict[str, Any]) -> str:
    def ratio(name: str) -> str:
        goal = row[f"{name}_goal"]
        return f"{row[name]:.2f}" + (f" ({goal})" if goal else "")

    rate = row["tokens_per_second"]
    peer = over = "-"
    if "peer" in row:
        peer, over = f"{rate[row['peer']]:.0f} ({row['peer']})", ratio("over_peer")
    replay = ratio("of_replay")
    cells = [row["shape"], row["precision"], row["batch"]]
    cells += [f"{row['tokens']} ({row['real_share']:.0%})"]
    cells += [f"{rate['own']:.0f}", peer, over, replay]
    return f"| {' | '.join(map(str, cells))} |"


def readable(section: dict[str, object]) -> str:
    def short(value: object) -> object:
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        return round(value, 3) if isinstance(value, float) else value

    return ", ".join(f"{key} {short(value)}" for key, value in section.items())


if __name__ == "__main__":
    main()
