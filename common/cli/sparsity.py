# SPDX-License-Identifier: Apache-2.0
"""``bertbench sparsity check``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from bertbench.common.cli.filters import add_filters, chosen_folder
from bertbench.common.cli.verbs import parser


def main(argv: Sequence[str]) -> int:
    """Print each weight's pattern; returns 1 where one is not 2:4 that could be."""
    verb = parser(
        "sparsity",
        usage="bertbench sparsity check [-h] [--json] [filters] [PLACE]",
        epilog="Exit code: 0 each weight that 2:4 kernels take is 2:4 sparse; 1 one is not; 2 "
        "refused.",
    )
    verb.add_argument("action", choices=("check",), help="the only one")
    verb.add_argument(
        "place", nargs="?", type=Path, metavar="PLACE",
        help="a run, a checkpoint, weights (.safetensors, .pt), an ONNX file or an exported "
        "folder; default: the run that the filters leave",
    )  # fmt: skip
    add_filters(verb)
    given = verb.parse_args(argv)
    place = chosen_folder(given, given.place)
    from bertbench.common.exchange.weight_sparsity import check_sparsity  # only here: it is slow

    file, kind, made = check_sparsity(place)
    eligible = [m for m in made if m.eligible]
    held = sum(m.holds for m in eligible)
    entries = [m.shape[0] * m.shape[1] for m in eligible]
    kept = sum(n * m.kept for n, m in zip(entries, eligible, strict=True)) / sum(entries)
    if given.json:
        rows = [dataclasses.asdict(m) | {"holds": m.holds} for m in made]
        totals = {"eligible": len(eligible), "held": held, "kept": kept}
        print(json.dumps({"file": str(file), "kind": kind, **totals, "matrices": rows}))
        return int(held < len(eligible))
    width = max(len(m.name) for m in made)
    print(f"{'weight':<{width}}  {'out x in':>13}  kept %  2:4 along the inputs")
    for m in made:
        state = "yes" if m.holds else f"no: up to {m.most} of 4"
        state += "" if m.eligible else " (its shape is not for 2:4 kernels: not counted)"
        size = " x ".join(map(str, m.shape))
        print(f"{m.name:<{width}}  {size:>13}  {100 * m.kept:>6.2f}  {state}")
    print(f"{held} of {len(eligible)} weights are 2:4 sparse and keep {100 * kept:.2f} %")
    return int(held < len(eligible))
