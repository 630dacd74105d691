# SPDX-License-Identifier: Apache-2.0
"""Compare attention over kept blocks on cpu_ref with dense attention: time and memory.

    python tools/bench_sparse.py [--lengths 512,1024] [--pattern P]... [--quick] [--json FILE]

One layer's attention: one sequence of n tokens, 12 heads of 64, no dropout. All variants of a
length take turns in one process. The patterns are window + global and BigBird in blocks of 32 and
of 64 tokens: a window of one block on each side, one global block, for BigBird two random ones too.

* dense: the faster of torch's fused SDPA and our native kernel, both without a mask.
* kept blocks: forward and backward by the fastest of the candidates between which a run chooses.
* x dense: median over the rounds of dense's seconds / those over kept blocks.
* of ideal: x dense, times the share of blocks (of the pattern's size) that the mask keeps.
* forward, flex: forward pass alone without gradients, ours and FlexAttention's, compiled by
  torch.compile, its block mask made once. It has no backward pass on CPUs.
* saved: bytes that the forward pass keeps for the backward pass; in brackets: our dense kernel.

Then one optimizer step of whole models at --model_length: one sequence, masked language modelling,
AdamW. Dense is the faster of the two kernels. mini has 4 layers of 256 (4 heads), minilm 6 of 384
(12 heads), base 12 of 768 (12 heads): what attention can save depends on its share of the step.

--goals exits with 1 where a pattern of blocks of 32 misses one of the goals: 1.3, 2.5, 5 and 9 x
dense at 512, 1,024, 2,048 and 4,096 tokens, 0.6 of ideal from 1,024 on, no slower than flex, 2 x
dense for the model.
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
from bench.sparse import MODELS, Layer, mask_of, model_steps, saved_bytes
from bench.timing import interleave, ratio

from bertbench.backends.cpu_ref.allocator import keep_freed_memory
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.backends.cpu_ref.kernels import NativeOps
from bertbench.common.masks.mask import AttentionMask
from bertbench.common.masks.patterns import parse
from bertbench.common.report.plot import Series, lines

LENGTHS = (512, 1024, 2048, 4096)
PATTERNS = tuple(
    f"{pattern},block={block}"
    for block in (32, 64)
    for pattern in ("longformer:window=1,globals=0", "bigbird:window=1,globals=0,random=2")
)
OVER_DENSE = {512: 1.3, 1024: 2.5, 2048: 5.0, 4096: 9.0}
OF_IDEAL, MODEL_OVER_DENSE = 0.6, 2.0
_MARKS = "\u25cf\u25a0\u25b2\u25bc+x"
"""As the plot marks its series, in their order."""
HEADER = (
    "| n | pattern | share kept | sdpa, ms | native, ms | kept blocks, ms | x dense | of ideal "
    "| forward, ms | flex, ms | saved, MB |\n|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def main() -> int:
    arguments = _parse()
    allocator = keep_freed_memory()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    device = CpuRef().describe()
    heading = {
        "device": device.name,
        **device.extras,
        "torch": torch.__version__,
        "allocator": allocator,
        "kernels": dict(NativeOps(dtype).kernels),
        "dtype": str(dtype),
    }
    print(f"{heading}\n\n{HEADER}")
    patterns, rounds = arguments.pattern or list(PATTERNS), 3 if arguments.quick else 9
    rows: list[dict[str, Any]] = []
    for length in arguments.lengths:
        new = measure(length, patterns, dtype, rounds, flex=not arguments.no_flex)
        rows += new
        print("\n".join(map(show, new)), flush=True)
    models: list[dict[str, Any]] = []
    for name in arguments.model if arguments.model_length else ():
        models += measure_model(name, arguments.model_length, patterns, dtype, rounds)
        print("\n" + "\n".join(map(show_model, models[-len(patterns) :])), flush=True)
    if arguments.json:
        content = {"environment": heading, "rows": rows, "models": models}
        arguments.json.write_text(json.dumps(content, indent=1))
    if arguments.plot:
        arguments.plot.write_text(drawing(rows))
    missed = misses(rows, models) if arguments.goals else []
    print("\n".join(["", *missed]))
    return bool(missed)


def measure(
    length: int, patterns: list[str], dtype: torch.dtype, rounds: int, *, flex: bool
) -> list[dict[str, Any]]:
    """Measure all variants at one length, in turns; return a row for each pattern."""
    layer = Layer(length, dtype)
    layouts = {pattern: layer.routes(pattern) for pattern in patterns}
    dense = {"sdpa": layer.sdpa, "native": layer.native}
    steps = {(name, ""): layer.both_passes(forward) for name, forward in dense.items()}
    for pattern, made in layouts.items():
        for name, layout in made.items():
            steps[pattern, name] = layer.both_passes(lambda x=layout: layer.native(x))
            steps[pattern, f"forward {name}"] = lambda x=layout: layer.native(x, save=False)
        if flex:
            steps[pattern, "flex"] = layer.flex(pattern, _block(pattern))
    seconds = interleave(steps, rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min(((name, "") for name in dense), key=median.__getitem__)
    rows = []
    for pattern, made in layouts.items():
        chosen = min(made, key=lambda name: median[pattern, name])
        forward = min((f"forward {name}" for name in made), key=lambda n: median[pattern, n])
        share = AttentionMask([[parse(pattern)]]).blocks_kept(length, _block(pattern))
        gain = ratio(seconds[fastest], seconds[pattern, chosen])
        saved = {"kept": saved_bytes(lambda x=made[chosen]: layer.native(x))}
        rows.append({
            "length": length, "pattern": pattern, "rounds": rounds, "share_of_blocks": share,
            "sparsity_ratio": 1 - float(mask_of(pattern, length).mean()),
            "dense": fastest[0], "kernel": chosen, "over_dense": gain, "of_ideal": gain * share,
            "seconds": {
                " ".join(filter(None, name)): median[name]
                for name in steps if name[0] in (pattern, *dense)
            },
            "sdpa_s": median["sdpa", ""], "native_s": median["native", ""],
            "kept_s": median[pattern, chosen], "forward_s": median[pattern, forward],
            "flex_s": median.get((pattern, "flex")),
            "over_flex": ratio(seconds[pattern, "flex"], seconds[pattern, forward])
            if flex else None,
            "saved_bytes": saved | {"native": saved_bytes(layer.native)},
        })  # fmt: skip
    return rows


def measure_model(
    name: str, length: int, patterns: list[str], dtype: torch.dtype, rounds: int
) -> list[dict[str, Any]]:
    """Measure a model's training step at one length; return a row for each pattern."""
    seconds = interleave(model_steps(MODELS[name], length, patterns, dtype), rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    dense = min(("sdpa", "native"), key=median.__getitem__)
    return [
        {
            "model": name, "length": length, "pattern": pattern, "dense": dense, "seconds": median,
            "over_dense": ratio(seconds[dense], seconds[pattern]),
        }
        for pattern in patterns
    ]  # fmt: skip


def misses(rows: list[dict[str, Any]], models: list[dict[str, Any]]) -> list[str]:
    """Return the goals that patterns of blocks of 32 miss, in words."""
    found = []
    for row in rows:
        n, pattern = row["length"], row["pattern"]
        checks = [("x dense", row["over_dense"], OVER_DENSE.get(n, 1.0))]
        if n >= 1024:
            checks.append(("of ideal", row["of_ideal"], OF_IDEAL))
        if row["over_flex"] is not None:
            checks.append(("of flex's speed", row["over_flex"], 1.0))
        found += [(n, pattern, *check) for check in checks]
    found += [(m["length"], m["pattern"], f"x dense, {m['model']}", m["over_dense"],
               MODEL_OVER_DENSE) for m in models]  # fmt: skip
    return [
        f"missed at {n}, {pattern}: {value:.2f} {what}, goal {goal}"
        for n, pattern, what, value, goal in found
        if _block(pattern) == 32 and value < goal
    ]


def tables(content: dict[str, Any]) -> str:
    """Return what --json has saved, as it was printed."""
    steps = [f"- {show_model(row)}" for row in content["models"]]
    return "\n".join([HEADER, *map(show, content["rows"]), "", *steps])


def show(row: dict[str, Any]) -> str:
    """Return a row of the table."""

    def ms(seconds: float | None) -> str:
        return "" if seconds is None else f"{1e3 * seconds:.1f}"

    saved = {name: f"{size / 1e6:.1f}" for name, size in row["saved_bytes"].items()}
    cells = [row["length"], row["pattern"], f"{row['share_of_blocks']:.1%}", ms(row["sdpa_s"])]
    cells += [ms(row["native_s"]), f"{ms(row['kept_s'])} ({row['kernel']})"]
    cells += [f"{row['over_dense']:.2f}", f"{row['of_ideal']:.2f}", ms(row["forward_s"])]
    cells += [ms(row["flex_s"]), f"{saved['kept']} ({saved['native']})"]
    return f"| {' | '.join(map(str, cells))} |"


def show_model(row: dict[str, Any]) -> str:
    """Return the model's step in a line."""
    kept, dense = row["seconds"][row["pattern"]], row["seconds"][row["dense"]]
    return (
        f"{row['model']}'s step at {row['length']}, {row['pattern']}: {kept:.3f} s, "
        f"dense {dense:.3f} s ({row['dense']}): {row['over_dense']:.2f} x"
    )


def drawing(rows: list[dict[str, Any]]) -> str:
    """Return the memory over n as an SVG document."""
    kept = {pattern: [] for pattern in dict.fromkeys(row["pattern"] for row in rows)}
    dense = {}
    for row in rows:
        kept[row["pattern"]].append((row["length"], row["saved_bytes"]["kept"] / 1e6))
        dense[row["length"]] = row["saved_bytes"]["native"] / 1e6
    series = [Series(label="dense, native", points=sorted(dense.items()))]
    series += [Series(label=p, points=x, style=at) for at, (p, x) in enumerate(kept.items(), 1)]
    drawn = lines(
        "memory", "Memory kept for the backward pass", "Saved bytes of one layer over length",
        series, x="tokens", y="MB", log=True,
    )  # fmt: skip
    style = (Path(__file__).parents[1] / "common/report/report.css").read_text()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="960"><style>{style}</style>'
    names = "".join(
        f'<text x="70" y="{44 + 14 * at}" font-size="10">{_MARKS[at % 6]} {one.label}</text>'
        for at, one in enumerate(series)
    )
    inner = str(drawn.svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}{inner.removesuffix('</svg>')}{names}</svg></svg>"


def _block(pattern: str) -> int:
    """Return the size of a pattern's blocks, in tokens; 1 means single entries."""
    return int(dict(parse(pattern).values).get("block", 1))  # type: ignore[arg-type]


def _parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=numbers, default=LENGTHS)
    parser.add_argument("--pattern", action="append", help="as `bertbench masks` takes it")
    parser.add_argument("--model_length", type=int, default=2048, help="0: no model")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["mini", "minilm"])
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, not float32")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--no_flex", action="store_true", help="without FlexAttention")
    parser.add_argument("--goals", action="store_true", help="exit with 1 where one is missed")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="draw the memory over n here, as SVG")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
