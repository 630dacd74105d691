# SPDX-License-Identifier: Apache-2.0
"""Compare attention over kept blocks on cpu_ref with dense attention: time and memory.

    python tools/bench_sparse.py [--lengths 512,1024] [--pattern P]... [--quick] [--json FILE]

Forward and backward of one layer's attention: one sequence, 12 heads of 64. The variants run in
turns in one process.

* dense: the faster of torch's fused SDPA and our native kernel, both without a mask.
* x dense: median over the rounds of dense's seconds / those over kept blocks, best block size.
* of ideal: (dense's seconds x the share of blocks kept) / the seconds over kept blocks.
* saved: bytes that the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from bench.timing import interleave, ratio
from torch import Tensor

from bertbench.backends.cpu_ref.allocator import keep_freed_memory
from bertbench.backends.cpu_ref.functions import NO_DROPOUT, Attention
from bertbench.backends.cpu_ref.kernels import NativeOps
from bertbench.backends.cpu_ref.layout import DENSE, Layout
from bertbench.common.data.batch import Tokens
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse

HEADS, SIZE = 12, 64
LENGTHS = (512, 1024, 2048, 4096)
PATTERNS = (
    "longformer:window=1,globals=0,block=64",
    "bigbird:window=1,globals=0,random=2,block=64",
)
BLOCKS = (32, 64)


def main() -> None:
    arguments = _parse()
    allocator = keep_freed_memory()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    heading = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": allocator,
        "kernels": dict(NativeOps(dtype).kernels),
        "dtype": str(dtype),
    }
    print(f"{heading}\n")
    print(
        "| n | pattern | share kept | sdpa, ms | native, ms | kept blocks, ms (block) | x dense "
        "| of ideal | saved, MB (dense) |"
    )
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    rows = []
    for length in arguments.lengths:
        for pattern in arguments.pattern or PATTERNS:
            rows.append(measure(length, pattern, dtype, 3 if arguments.quick else 9))
            print(show(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": heading, "rows": rows}, indent=1))


def measure(length: int, pattern: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Measure all variants at one length, in turns."""
    mask = AttentionMask([[parse(pattern)]])
    qkv = torch.randn(length, 3 * HEADS * SIZE).to(dtype).requires_grad_()
    dy = torch.randn(length, HEADS * SIZE).to(dtype)
    positions = torch.arange(length)
    tokens = Tokens(
        input_ids=positions, segment_ids=positions, position_ids=positions,
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32), lengths=(length,),
    )  # fmt: skip

    def native(layout: Layout) -> Callable[[], Tensor]:
        return lambda: Attention.apply(qkv, tokens, HEADS, NO_DROPOUT, True, layout)

    def sdpa() -> Tensor:
        q, k, v = qkv.view(1, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(length, HEADS * SIZE)

    bits = mask.layer(0, length)
    kept = {str(b): native(Layout.of(bits, heads=HEADS, block=b)) for b in BLOCKS}
    forward = {"sdpa": sdpa, "native": native(DENSE), **kept}
    steps = {n: (lambda f=f: torch.autograd.grad(f(), qkv, dy)) for n, f in forward.items()}
    seconds = interleave(steps, rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    dense = min(("sdpa", "native"), key=medians.__getitem__)
    block = min(kept, key=medians.__getitem__)
    share = mask.blocks_kept(length, int(block))
    gain = ratio(seconds[dense], seconds[block])
    return {
        "length": length,
        "pattern": pattern,
        "rounds": rounds,
        "sparsity_ratio": mask.sparsity_ratio(length),
        "seconds": medians,
        "dense": dense,
        "block": int(block),
        "share_of_blocks": share,
        "over_dense": gain,
        "of_ideal": gain * share,
        "saved_bytes": {name: saved_bytes(forward[name]) for name in ("native", block)},
    }


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Return the bytes of the tensors that one forward pass saves."""
    sizes = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes)


def show(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    ms = {name: f"{1e3 * s:.1f}" for name, s in row["seconds"].items()}
    block = str(row["block"])
    saved = {name: f"{size / 1e6:.1f}" for name, size in row["saved_bytes"].items()}
    cells = [row["length"], row["pattern"], f"{row['share_of_blocks']:.1%}", ms["sdpa"]]
    cells += [ms["native"], f"{ms[block]} ({block})", f"{row['over_dense']:.2f}"]
    cells += [f"{row['of_ideal']:.2f}", f"{saved[block]} ({saved['native']})"]
    return f"| {' | '.join(map(str, cells))} |"


def _parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=numbers, default=LENGTHS)
    parser.add_argument("--pattern", action="append", help="as `bertbench masks` takes it")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, not float32")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
