# SPDX-License-Identifier: Apache-2.0
"""``bertbench import-mlperf``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertbench.common.cli.verbs import parser
from bertbench.common.errors import BadInput
from bertbench.common.exchange.import_log import Origin, file_name, import_log
from bertbench.common.files import shown
from bertbench.common.results.published import write_published
from bertbench.common.results.store import REFERENCE

_IMPORTANT = ("benchmark", "system", "status", "run_time_s", "samples", "accuracy", "target")
"""Facts that get a line when unknown."""


def _lines(entry: dict[str, Any]) -> list[str]:
    row = entry["record"]["rows"][0]
    metrics = {name: metric["value"] for name, metric in row["metrics"].items()}
    quality, seconds = row["quality"], metrics.get("run_time_s")
    parts = [
        f"{shown(entry['log'])}: {row['status'].replace('_', ' ')}",
        f"accuracy {quality['value']:.5g}" if quality["value"] is not None else None,
        f"target {quality['target']:g}" if quality["target"] is not None else None,
        f"{seconds / 60:.2f} min" if seconds is not None else None,
        f"{row['samples']} samples" if row["samples"] is not None else None,
        f"{metrics['sequences_per_second_e2e']:.1f} sequences/s"
        if "sequences_per_second_e2e" in metrics
        else None,
    ]
    lines = [", ".join(part for part in parts if part), f"  {shown(entry['file'], 4096)}"]
    important = {name: why for name, why in row["missing"].items() if name in _IMPORTANT}
    others = [name for name in row["missing"] if name not in important]
    lines += [f"  unknown: {name}: {shown(why)}" for name, why in important.items()]
    if others:
        lines.append(f"  unknown, see the record: {', '.join(others)}")
    return lines + [f"  doubt: {shown(text, 300)}" for text in row["doubt"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Import the logs; returns 1 if some are refused. Raises BadInput if all are."""
    verb = parser(
        "import-mlperf", epilog="Exit code: 0 all imported, 1 some refused, 2 all refused"
    )
    verb.add_argument(
        "logs", nargs="+", type=Path, metavar="FILE", help="a run's log, result_N.txt"
    )
    verb.add_output(default=REFERENCE, help="folder of published figures")
    verb.add_argument("--round", metavar="N.N", help="MLPerf round, such as 3.0")
    verb.add_argument("--submitter", metavar="NAME", help="the publisher")
    verb.add_argument("--system", metavar="NAME", help="replaces the system's name in the log")
    verb.add_argument("--devices", type=int, metavar="N", help="number of accelerators")
    verb.add_argument("--device", metavar="NAME", help="name of the accelerators")
    options = verb.parse_args(argv)
    if options.round is not None and not re.fullmatch(r"\d+\.\d+", options.round):
        raise BadInput(f"--round {shown(options.round)} is not like 3.0")
    if options.devices is not None and options.devices < 1:
        raise BadInput("--devices must be at least 1")
    about = ("round", "submitter", "system", "devices", "device")
    given = {k: v for k, v in vars(options).items() if k in about and v is not None}
    done: list[dict[str, Any]] = []
    refused: list[str] = []
    for path in options.logs:
        known = Origin.of(path)
        try:
            document = import_log(path, Origin(**{**vars(known), **given}))
            if given:
                document["rows"][0]["log"]["facts"]["given"] = ", ".join(sorted(given))
            options.output.mkdir(parents=True, exist_ok=True)
            file = options.output / file_name(document, path)
            write_published(file, document)
        except OSError as error:
            raise BadInput(f"cannot write to {shown(options.output)}: {shown(error)}") from error
        except BadInput as error:
            refused.append(str(error))
            continue
        done.append({"log": str(path), "file": str(file), "record": document})
    if not done:
        raise BadInput("\n".join(shown(text, 600) for text in refused))
    if options.json:
        print(json.dumps({"imported": done, "refused": refused}, indent=1))
    else:
        for entry in done:
            print("\n".join(_lines(entry)))
    for text in refused:
        print(f"bertbench import-mlperf: {shown(text, 600)}", file=sys.stderr)
    return 1 if refused else 0
