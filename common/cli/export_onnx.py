# SPDX-License-Identifier: Apache-2.0
"""``bertbench export-onnx``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.filters import add_filters, chosen_folder
from bertbench.common.cli.verbs import parser


def main(argv: Sequence[str]) -> int:
    """Export the model and print its facts."""
    verb = parser("export-onnx")
    verb.add_argument(
        "run", nargs="?", type=Path,
        help="a SQuAD run's folder, or one of its checkpoints; default: the run that the filters "
        "leave",
    )  # fmt: skip
    verb.add_output(required=True, help="a new folder")
    verb.add_argument(
        "--vocab_file", type=Path, metavar="FILE", help="default: the run's own vocabulary"
    )
    add_filters(verb)
    given = verb.parse_args(argv)
    run = chosen_folder(given, given.run)
    from bertbench.common.exchange.export_onnx import export_onnx  # only here: it is slow

    made = export_onnx(run, given.output, vocab_file=given.vocab_file)
    if given.json:
        print(json.dumps({"folder": str(given.output), **made}))
        return 0
    kinds = [made["quantization"] or "float32"]
    if made["weight_sparsity"]:
        kinds.append(f"{made['weight_sparsity']} sparse")
    print(
        f"wrote {given.output}: {made['parameters']:,} parameters of step {made['step']}, "
        f"{', '.join(kinds)}"
    )
    return 0
