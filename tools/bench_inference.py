# SPDX-License-Identifier: Apache-2.0
"""Measure inference on this processor: INT8, peers, bucketing, LoadGen's cost.

    python tools/bench_inference.py int8
    python tools/bench_inference.py peers --models DIR
    python tools/bench_inference.py bucketing --predict dev-v1.1.json
    python tools/bench_inference.py batch_tokens --predict dev-v1.1.json
    python tools/bench_inference.py loadgen --json FILE

The models have random weights: speed does not depend on them. They are compressed, calibrated and
exported as a run's are, which takes a minute for BERT-base; --models keeps them, until a source
file changes. All variants run in turns in one process with the same threads. Figures are medians
over the rounds (minimum-maximum), ratios are of pairs of the same round.

int8: our INT8 model and our FP32 model, on ONNX Runtime and OpenVINO: one batch of full length.

peers: our INT8 model, on the faster engine, beside ONNX Runtime's own quantization (dynamic,
dynamic after its optimizer for transformers, static), NNCF and Optimum of the same weights. A peer
that is not installed or fails is listed with the reason.

bucketing: Offline's batches, sorted by length, beside --padded. batch_tokens: the same by budget.

loadgen: LoadGen's tests, as `bertbench infer` makes them, beside the engine alone.

Exit codes: 0, measured, whatever the verdict; 2, refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import inference_loadgen, inference_speed
from bench.inference_models import SHAPES
from bench.inference_speed import DEFAULT_BUDGET, SHOWN, Options

from bertbench.common.errors import BertbenchError
from bertbench.common.files import host_cores

MODES: dict[str, tuple[Callable[[Options], dict[str, Any]], str]] = {
    "int8": (inference_speed.int8, "base"),
    "peers": (inference_speed.peers, "base"),
    "bucketing": (inference_speed.bucketing, "minilm"),
    "batch_tokens": (inference_speed.budgets, "minilm"),
    "loadgen": (inference_loadgen.loadgen, "minilm"),
}
"""Mode -> its measurement and the shape of its model."""
QUICK: dict[str, Any] = {
    "shape": "tiny", "rounds": 1, "samples": 16, "batch": 2, "length": 64, "batch_tokens": 768,
}  # fmt: skip


def main() -> int:
    arguments = parse()
    try:
        with tempfile.TemporaryDirectory(prefix="bertbench-") as folder:
            result = measure(arguments, arguments.models or Path(folder))
    except BertbenchError as error:
        print(f"bench_inference: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench_inference: interrupted", file=sys.stderr)
        return 130
    shown = inference_loadgen if arguments.mode == "loadgen" else inference_speed
    print(shown.show(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(arguments: argparse.Namespace, models: Path) -> dict[str, Any]:
    """Return the figures of the chosen mode."""
    measured, shape = MODES[arguments.mode]
    given = {n: v for n, v in vars(arguments).items() if n in Options.__annotations__}
    values = {"shape": shape, **(QUICK if arguments.quick else {})}
    values |= {name: value for name, value in given.items() if value is not None}
    values.setdefault("rounds", 3)
    return measured(Options(**values | {"models": models}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES)
    shapes = "base for int8 and peers, else minilm"
    parser.add_argument("--shape", choices=SHAPES, help=f"of the model ({shapes})")
    parser.add_argument("--batch", type=int, help="int8, peers: sequences (8)")
    parser.add_argument("--length", type=int, help="int8, peers: tokens of each (384)")
    parser.add_argument(
        "--predict", type=Path, help="SQuAD file; default: made-up samples with its dev lengths"
    )
    parser.add_argument("--samples", type=int, help="of it, at random (256)")
    parser.add_argument("--batch_tokens", type=int, help=f"of a batch ({DEFAULT_BUDGET})")
    parser.add_argument("--engine", choices=SHOWN, help="not for int8 and peers (onnxruntime)")
    parser.add_argument("--rounds", type=int, help="turns of each, after one untimed (3)")
    parser.add_argument("--threads", type=int, default=host_cores(), help="default: all cores")
    parser.add_argument("--models", type=Path, help="folder that keeps the models")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: a smoke test")
    arguments = parser.parse_args()
    for name in ("batch", "length", "samples", "batch_tokens", "rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
