# SPDX-License-Identifier: Apache-2.0
"""Compare GLUE on cpu_ref with Hugging Face Transformers: accuracy and speed.

    python tools/bench_glue.py quality --train_file FILE --task mnli --output DIR
    python tools/bench_glue.py speed --train_file FILE --task mnli [--json FILE]

The recipe is glue_mini: MiniLM's weights (6 x 384), 128, batch 32. The peer is Hugging Face's
BertForSequenceClassification with the same weights and batches, in bf16 autocast, with torch's
fused AdamW, the same rates and the same clipping.

quality: per seed, our runner with dense attention, the peer, and our runner with --attention_mask
train on FILE without --eval_share of it, by our rule, and label this share. DIR/quality.json is
written after every run, and the same command continues with the missing ones.

speed: sequences/s of training. All variants run in turns in one process, with the same threads and
allocator. The goal applies to the peer padded to 128, the default of run_glue.py
(--pad_to_max_length), with the faster of its SDPA and eager attention; the peer padded to the
longest sequence of each batch is measured, too. Figures are medians over the rounds
(minimum-maximum), ratios are of pairs of the same round. No side's time includes tokenization.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bench import glue_quality, glue_speed
from bench.quality import Interrupted
from bench.steps import PEER_MISSING, peer_available

from bertbench.common.errors import BertbenchError


def main() -> int:
    arguments = parse()
    if not peer_available():
        print(PEER_MISSING, file=sys.stderr)
        return 2
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # SIGTERM acts like Ctrl-C: the run in another process ends first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return arguments.do(arguments)
    except BertbenchError as error:
        print(f"bench_glue: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted):
        print("bench_glue: interrupted", file=sys.stderr)
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)

    quality = verbs.add_parser("quality", help="scores")
    quality.add_argument("--output", type=Path, required=True, help="folder of the results")
    quality.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    quality.add_argument("--eval_share", type=float, default=0.2, help="held out (0.2)")
    quality.add_argument("--num_train_epochs", type=float, default=3.0, help="as the recipe's (3)")
    quality.add_argument("--attention_mask", help="also ours with this sparse pattern")
    quality.add_argument("--attention", choices=("sdpa", "eager"), default="eager", help="peer's")
    quality.set_defaults(do=run_quality)

    speed = verbs.add_parser("speed", help="sequences/s")
    speed.add_argument("--batches", type=int, default=2, help="optimizer steps in a turn (2)")
    speed.add_argument("--rounds", type=int, default=5, help="turns of each, after one untimed (5)")
    speed.add_argument("--seed", type=int, default=1)
    speed.add_argument("--json", type=Path, help="write all figures here")
    speed.set_defaults(do=run_speed)

    for each in (quality, speed):
        each.add_argument("--train_file", type=Path, required=True, help="as of bertbench run")
        each.add_argument("--task", default="mnli", help="of the file (mnli)")
        each.add_argument("--threads", type=int, help="default: torch's choice")
        each.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    arguments = parser.parse_args()
    for name in ("threads", "batches", "rounds"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: must be at least 1")
    return arguments


def run_quality(arguments: argparse.Namespace) -> int:
    quality = glue_quality.GlueQuality(
        task=arguments.task,
        train=arguments.train_file,
        share=arguments.eval_share,
        epochs=arguments.num_train_epochs,
        mask=arguments.attention_mask,
        folder=arguments.output,
        precision=arguments.precision,
        attention=arguments.attention,
        threads=torch.get_num_threads(),
        seeds=arguments.seeds,
    )
    content = quality.run(lambda text: print(text, file=sys.stderr, flush=True))
    print(f"{glue_quality.show(content)}\n\n{quality.file}")
    return 0


def run_speed(arguments: argparse.Namespace) -> int:
    result = glue_speed.speed(
        task=arguments.task,
        train=arguments.train_file,
        precision=arguments.precision,
        batches=arguments.batches,
        rounds=arguments.rounds,
        seed=arguments.seed,
    )
    print(f"{result['environment']}\n{result['data']}\n\n{glue_speed.show(result)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
