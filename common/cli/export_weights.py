# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-weights``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.config.parser import Parser
from bertbench.common.exchange.export_weights import export


def main(argv: Sequence[str]) -> int:
    """Command line of the verb; raises BadInput or Unsupported."""
    parser = Parser("export-weights", __doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--naming",
        choices=("huggingface", "nvidia"),
        default="huggingface",
        help="for whom (%(default)s)",
    )
    parser.add_argument(
        "--vocab_file",
        type=Path,
        metavar="FILE",
        help="goes along as vocab.txt; the model's padding rows beyond its tokens are cut",
    )
    given = parser.parse_args(argv)
    made = export(given.run, given.output, naming=given.naming, vocab_file=given.vocab_file)
    if given.json:
        print(json.dumps(made))
        return 0
    print(f"wrote {made['folder']}: {made['parameters']:,} parameters of step {made['step']}")
    if given.naming == "huggingface":
        print(f"  transformers.{made['architecture']}.from_pretrained({made['folder']!r})")
    else:
        print(f"  --init_checkpoint {Path(made['folder']) / 'pytorch_model.bin'}")
    if given.vocab_file is None:
        print("  without a vocabulary: --vocab_file FILE takes one along")
    return 0
