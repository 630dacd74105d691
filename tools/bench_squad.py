# SPDX-License-Identifier: Apache-2.0
"""Compare SQuAD on cpu_ref with Hugging Face Transformers: speed and quality.

    python tools/bench_squad.py features --predict DEV.json
    python tools/bench_squad.py speed [--train TRAIN.json --predict DEV.json] [--json FILE]
    python tools/bench_squad.py quality --train TRAIN.json --predict DEV.json --output DIR

The recipe is squad_mini: MiniLM's weights (6 x 384), 384/128/64. The peer is Hugging Face's
BertForQuestionAnswering with the same weights and batches, padded to the longest sequence of each
batch (in quality: of each part of similar length), in bf16 autocast, with torch's fused AdamW and
the same clipping.

features: from the file to the model's input, against the reference's procedure in plain Python; per
second of CPU time, in one process.

speed: sequences/s of training and of inference. All variants run in turns in one process, with the
same threads and allocator. Figures are medians over the rounds (minimum-maximum), ratios are of
pairs of the same round, and the goal applies to the faster of the peer's SDPA and eager attention.
"products" is our matrix products alone, through torch: the limit of this machine.

quality: per seed, our runner and then the peer train and answer all of --predict; our scoring
computes EM and F1 of both. It takes hours. DIR/quality.json is written after every run, and the
same command resumes: the peer's run from its state of up to five minutes before. Several commands
can share one DIR with different --seeds or --sides, with one thread each.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bench import squad_features, squad_quality, squad_speed
from bench.quality import Interrupted
from bench.steps import PEER_MISSING, peer_available

from bertbench.common.errors import BertbenchError

POSITIVE = (
    *("articles", "batch", "eval_batch", "batches", "eval_batches", "rounds", "limit", "threads"),
)


def main() -> int:
    arguments = parse()
    if arguments.verb != "features" and not peer_available():
        print(PEER_MISSING, file=sys.stderr)
        return 2
    if getattr(arguments, "threads", None) is not None:
        torch.set_num_threads(arguments.threads)
    # SIGTERM acts like Ctrl-C: the run in another process ends first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return arguments.do(arguments)
    except BertbenchError as error:
        print(f"bench_squad: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted):
        hint = "; the same command resumes"
        hint = hint if arguments.verb == "quality" else ""
        print(f"bench_squad: interrupted{hint}", file=sys.stderr)
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)

    features = verbs.add_parser("features", help="features/s")
    features.add_argument("--predict", type=Path, required=True, help="SQuAD file")
    features.add_argument(
        "--articles", type=int, default=5, help="articles of it, spread over the file (5)"
    )
    features.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    features.set_defaults(do=run_features)

    speed = verbs.add_parser("speed", help="sequences/s")
    speed.add_argument("--train", type=Path, help="SQuAD file; default: synthetic")
    speed.add_argument("--predict", type=Path, help="SQuAD file; goes with --train")
    speed.add_argument("--batch", type=int, default=16, help="sequences per optimizer step (16)")
    speed.add_argument("--eval_batch", type=int, default=32, help="in inference (32)")
    speed.add_argument("--batches", type=int, default=2, help="optimizer steps in a turn (2)")
    speed.add_argument("--eval_batches", type=int, default=4, help="batches in a turn (4)")
    speed.add_argument("--rounds", type=int, default=5, help="turns of each, after one untimed (5)")
    speed.add_argument("--seed", type=int, default=1)
    speed.add_argument(
        "--fixed", action="store_true", help="also the peer padded to 384, run_qa.py's default"
    )
    speed.set_defaults(do=run_speed)

    quality = verbs.add_parser("quality", help="EM and F1")
    quality.add_argument("--train", type=Path, required=True, help="SQuAD file to train on")
    quality.add_argument("--predict", type=Path, required=True, help="SQuAD file to answer")
    quality.add_argument("--output", type=Path, required=True, help="folder of the results")
    quality.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    quality.add_argument("--sides", nargs="+", choices=squad_quality.SIDES, default=["own", "peer"])
    quality.add_argument("--limit", type=int, help="a trial: this many questions of each file")
    quality.add_argument("--attention", choices=("sdpa", "eager"), default="eager", help="peer's")
    quality.set_defaults(do=run_quality)

    for each in (features, speed):
        each.add_argument("--json", type=Path, help="write all figures here")
    for each in (speed, quality):
        each.add_argument("--threads", type=int, help="default: torch's choice")
        each.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    arguments = parser.parse_args()
    if arguments.verb == "speed" and (arguments.train is None) != (arguments.predict is None):
        parser.error("give both --train and --predict, or neither for synthetic data")
    for name in POSITIVE:
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    return arguments


def run_features(arguments: argparse.Namespace) -> int:
    result = squad_features.rates(arguments.predict, arguments.articles, arguments.rounds)
    print(f"{result['features']} features\n\n{squad_features.show(result)}")
    keep(result, arguments.json)
    return 0


def run_speed(arguments: argparse.Namespace) -> int:
    others = ("verb", "do", "json", "threads")
    result = squad_speed.speed(**{k: v for k, v in vars(arguments).items() if k not in others})
    data = result["data"]
    shown = data if isinstance(data, str) else " and ".join(data)
    print(f"{result['environment']}\n{shown}\n\n{squad_speed.show(result)}")
    keep(result, arguments.json)
    return 0


def keep(result: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")


def run_quality(arguments: argparse.Namespace) -> int:
    quality = squad_quality.Quality(
        train=arguments.train,
        predict=arguments.predict,
        folder=arguments.output,
        precision=arguments.precision,
        attention=arguments.attention,
        threads=torch.get_num_threads(),
        limit=arguments.limit,
        seeds=arguments.seeds,
        sides=arguments.sides,
    )
    content = quality.run(lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{squad_quality.show(content)}\n\n{quality.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
