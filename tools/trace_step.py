# SPDX-License-Identifier: Apache-2.0
"""Print the work of one training step on an NVIDIA GPU, without a GPU and without data.

    python tools/trace_step.py RECIPE [flags of `bertbench run RECIPE`] [flags below]
    python tools/trace_step.py mlperf_large_768 --micro_batch 96 --precision bf16 --kernels flash
    python tools/trace_step.py squad_large_1 --precision bf16

Runs the product's own model, loss, gradient clipping, gradient scaler and optimizer
(train_step of common/training/step.py over backends/cuda) on fake CUDA tensors, which have shapes
and types but no memory. Prints, by phase and operation, the kernels launched and the bytes moved,
the synchronisations with the line of code that causes them, and a roofline estimate with its
assumptions. The numbers follow from shapes without measurement, so the same code gives the same
numbers on every machine. The output includes the definitions.

Needs Linux, a C++ compiler (CXX, c++ or g++) and any build of torch, with or without CUDA.

To compare two states of the code with one definition, run it twice with --tree.
Exit codes: 0 printed, 2 refused (with a message).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RATES = {"gemm_tflops": 680.0, "attention_tflops": 280.0, "attention_backward_tflops": 230.0}
"""Assumed for 16-bit matrix products and FlashAttention 2 on an H100."""
FP8_TFLOPS = 1150.0
"""Assumed there for products of 8-bit floats."""
LAUNCH_US = 18.0
"""Assumed: the host issued forward and backward of BERT-large in 15 us an operation on a server CPU
(process time, eager mode), and a launch takes 2 to 3 us."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trace the step that the command line describes; return the exit code."""
    given, flags = parse(sys.argv[1:] if argv is None else argv)
    # The traced tree comes first, and before an installed copy of the product.
    sys.path[:0] = [str(given.tree), str(Path(__file__).resolve().parent)]
    from bertbench.common.errors import BertbenchError

    try:
        from tracing import process

        process.start()
        return report(given, flags)
    except BertbenchError as error:
        if given.json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"trace_step: {error}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags of this tool, and the recipe's."""
    parser = argparse.ArgumentParser(
        prog="trace_step.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `bertbench list`, first")
    parser.add_argument("--json", action="store_true", help="print all numbers for machines")
    parser.add_argument(
        "--accumulation",
        type=_counts,
        metavar="N,N",
        help="micro-batches of the steps to add up (1 and the recipe's on one device)",
    )
    parser.add_argument(
        "--top", type=int, default=24, metavar="N", help="operations in the table (24)"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=3.0, metavar="TB/S", help="of the device's memory (3.0)"
    )
    for name, value in RATES.items():
        parser.add_argument(
            f"--{name}",
            type=float,
            metavar="TFLOP/S",
            help=f"sustained; {value:g} for 16 bits and FlashAttention, else required",
        )
    parser.add_argument(
        "--fp8_tflops", type=float, default=FP8_TFLOPS, metavar="TFLOP/S",
        help=f"of 8-bit products, sustained ({FP8_TFLOPS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--launch_us", type=float, default=LAUNCH_US, metavar="US",
        help=f"host time to issue one operation ({LAUNCH_US:g})",
    )  # fmt: skip
    parser.add_argument(
        "--launch_argument_kb",
        type=int,
        choices=(4, 32),
        default=4,
        help="arguments that a launch on lists of tensors holds: 32 in torch 2.13 built for CUDA "
        "13, 4 in older releases and builds (4)",
    )
    parser.add_argument(
        "--tree",
        type=_tree,
        default=ROOT,
        metavar="DIR",
        help="trace the code of this checkout (the one that this tool is part of)",
    )
    arguments = list(argv)
    if arguments and arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments):
        parser.error("name the recipe first")
    return parser.parse_known_args(arguments)


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers above 0, as in 1,8")
    return sorted({int(part) for part in parts})


def _tree(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "common" / "training" / "loop.py").is_file():
        raise argparse.ArgumentTypeError(
            f"{path} is not a checkout: common/training/loop.py is missing"
        )
    return path


def report(given: argparse.Namespace, flags: Sequence[str]) -> int:
    """Trace and print; raise BadInput or Unsupported for a refused request."""
    from tracing.report import render, summary
    from tracing.run import trace
    from tracing.tally import Rates

    from bertbench.common.errors import BadInput

    missing = [name for name in RATES if getattr(given, name) is None]
    chosen = {name: RATES[name] if name in missing else getattr(given, name) for name in RATES}
    if min(given.bandwidth, given.launch_us, given.fp8_tflops, *chosen.values()) <= 0:
        raise BadInput("--bandwidth, --launch_us and the rates must be above 0")

    def accept(precision: str, attention: str) -> None:
        """Raise BadInput, before the trace, if the default rates do not apply."""
        unknown = list(missing) if precision not in ("bf16", "fp16", "fp8") else []
        if not attention.startswith(("flash", "fused-sdpa", "unfused", "sdpa")):
            unknown = [name for name in missing if name in unknown or "attention" in name]
        if unknown:
            raise BadInput(
                f"the default rates apply to 16-bit products and FlashAttention, not to "
                f"{precision} with {attention}: give {', '.join(f'--{name}' for name in unknown)}, "
                f"or --precision bf16 --kernels flash"
            )

    rates = Rates(
        bandwidth=1e12 * given.bandwidth,
        products=1e12 * chosen["gemm_tflops"],
        eight_bit_products=1e12 * given.fp8_tflops,
        attention_forward=1e12 * chosen["attention_tflops"],
        attention_backward=1e12 * chosen["attention_backward_tflops"],
        launch_s=1e-6 * given.launch_us,
    )
    found = trace(given.recipe, flags, given.tree, rates, given.launch_argument_kb, accept)
    accumulations = given.accumulation or sorted({1, found.accumulation})
    result = summary(found, rates, accumulations, given.launch_argument_kb)
    print(json.dumps(result, indent=1) if given.json else render(result, given.top))
    return 0


if __name__ == "__main__":
    sys.exit(main())
