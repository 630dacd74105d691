# SPDX-License-Identifier: Apache-2.0
"""``bertbench score squad``: EM and F1 of any predictions file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bertbench.benchmarks.bert_squad.score import language_note, score
from bertbench.common.config.parser import Parser

COUNTED = {
    "missing": "questions have no answer in the file and score 0",
    "extra": "answers belong to no question and are left out",
    "not_text": "answers are not text and score 0",
}


def score_main(argv: Sequence[str]) -> int:
    """Print the official script's line on stdout, and the other counts on stderr.

    With ``--json`` the line holds these counts, too. Raises BadInput for damaged files.
    """
    parser = Parser("score squad", __doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="SQuAD file with the answers")
    parser.add_argument("--predictions", type=Path, required=True, help="JSON: id to answer")
    parser.add_argument(
        "--version", choices=("1.1", "2.0"), help="rules to apply; default: the data set's"
    )
    given = parser.parse_args(argv)
    v2 = None if given.version is None else given.version == "2.0"
    found = score(given.dataset, given.predictions, v2=v2)
    if (note := language_note(given.dataset)) is not None:
        print(f"note: {note}", file=sys.stderr)
    if given.version is None and 0 < 10 * found.get("NoAns_total", 0) < found["total"]:
        few = f"{found['NoAns_total']} of {found['total']} questions have no answer"
        print(f"note: scored by v2.0's rules, since {few} (see --version)", file=sys.stderr)
    if given.json:
        print(json.dumps(found))
        return 0
    counts = {"total", "version", *COUNTED}
    for name, text in COUNTED.items():
        if found[name]:
            print(f"{found[name]} {text}", file=sys.stderr)
    print(json.dumps({name: value for name, value in found.items() if name not in counts}))
    return 0
