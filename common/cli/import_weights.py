# SPDX-License-Identifier: Apache-2.0
"""``bertbench import-weights``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.verbs import parser


def main(argv: Sequence[str]) -> int:
    """Convert the file and print how to start from it."""
    verb = parser("import-weights", epilog="Nothing in the pickle is executed.")
    verb.add_argument("file", type=Path, metavar="FILE", help="a pickle of numpy arrays by name")
    verb.add_output(required=True, help="a new folder")
    given = verb.parse_args(argv)
    from bertbench.common.exchange.import_weights import import_weights  # only here: it is slow

    made = import_weights(given.file, given.output)
    if given.json:
        print(json.dumps(made))
        return 0
    print(
        f"wrote {made['file']}: pre-LN, {made['num_hidden_layers']} layers of "
        f"{made['hidden_size']}, {made['parameters']:,} parameters, "
        f"{'with' if made['head'] else 'without'} a question-answering head"
    )
    if made["activation_ranges"]:
        print(f"  {made['activation_ranges']} activation ranges: --quantization int8 starts there")
    if made["left_out"]:
        some = ", ".join(made["left_out"][:3]) + (", ..." if len(made["left_out"]) > 3 else "")
        print(f"  left out: {len(made['left_out'])} arrays of no use here ({some})")
    print(f"  --init_checkpoint {made['file']}")
    return 0
