# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-weights``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.filters import add_filters, chosen_folder
from bertbench.common.cli.verbs import parser
from bertbench.common.exchange.export_weights import export
from bertbench.common.masks.attach import WITH_WEIGHTS


def main(argv: Sequence[str]) -> int:
    """Export the weights and print how to load them."""
    verb = parser("export-weights")
    verb.add_argument(
        "run", nargs="?", type=Path,
        help="a run's folder, or one of its checkpoints; default: the run that the filters leave",
    )  # fmt: skip
    verb.add_output(required=True, help="a new folder")
    verb.add_argument(
        "--naming",
        choices=("huggingface", "nvidia"),
        default="huggingface",
        help="names of the tensors",
    )
    verb.add_argument(
        "--vocab_file",
        type=Path,
        metavar="FILE",
        help="copied as vocab.txt; cuts the embedding's padding rows; default: the run's own",
    )
    add_filters(verb)
    given = verb.parse_args(argv)
    run = chosen_folder(given, given.run)
    made = export(run, given.output, naming=given.naming, vocab_file=given.vocab_file)
    if given.json:
        print(json.dumps(made))
        return 0
    print(f"wrote {made['folder']}: {made['parameters']:,} parameters of step {made['step']}")
    if made["run_step"] is not None and made["step"] < made["run_step"]:
        print(f"  older than the run's end: step {made['step']} of {made['run_step']}")
    if given.naming == "huggingface":
        print(f"  transformers.{made['architecture']}.from_pretrained({made['folder']!r})")
    else:
        print(f"  --init_checkpoint {Path(made['folder']) / 'pytorch_model.bin'}")
    if made["attention_mask"] is not None:
        print(
            f"  attention mask {made['attention_mask']}: --attention_mask "
            f"{Path(made['folder']) / WITH_WEIGHTS}; others compute dense attention"
        )
    if made["vocab_file"] is None:
        print("  no vocabulary included: --vocab_file FILE adds one")
    return 0
