# SPDX-License-Identifier: Apache-2.0
"""Change the files that the suite reads by the thousand, run what reads them, and judge that.

    python tests/hostile/campaign.py --seed S --n N [--kind KIND] [--jobs J]

A kind is a kind of file (subjects.py); ``--n`` counts the cases of each. Each failure prints its
own reproduction; the end counts the cases tried and right, by kind.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import shutil
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.faults import forks, shim
from tests.faults.judge import CONTROL, SAID, streams
from tests.faults.tally import arguments, tally
from tests.faults.targets import TARGETS, known, make_base
from tests.hostile import mutate
from tests.hostile.hdf5 import change_shard
from tests.hostile.subjects import LEDGER, SUBJECTS, Subject, make_more

NAME = "tests/hostile/campaign.py"
TIMEOUT = 20.0
SLOW = 60.0
"""Seconds for what starts interpreters or a compiler."""


def change(rng: random.Random, subject: Subject, case: Path, canary: Path) -> tuple[str, bool]:
    """Change one file; return the words of the change and whether its checksums are right again."""
    file = rng.choice(sorted(case.glob(subject.files)))
    data = file.read_bytes()
    chance = rng.random()
    if subject.form == "folder":
        return mutate.change_folder(rng, file)
    if chance < 0.08:
        return f"{file.name}: {mutate.change_kind(rng, file)}", False
    if subject.form == "hdf5" and chance < 0.55:
        return f"{file.name}: {change_shard(rng, file)}", False
    if subject.form == "packed" and chance < 0.15:
        return f"{file.name}: {mutate.bomb(rng, file)}", False
    if chance < 0.3 or subject.form in ("bytes", "hdf5"):
        others = [p for p in case.rglob("*") if p.is_file() and p.stat().st_size < 1 << 20]
        words, new = mutate.change_bytes(rng, data, rng.choice(sorted(others)).read_bytes())
    else:
        words, new = _change_content(rng, subject.form, data, file, canary)
    file.write_bytes(new)
    if subject.reseal is not None and rng.random() < 0.6:
        try:
            subject.reseal(case, file)
            return f"{file.name}: {words}, resealed", "without checksums" not in words
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
    return f"{file.name}: {words}{' (the same)' if new == data else ''}", new == data


def _change_content(
    rng: random.Random, form: str, data: bytes, file: Path, canary: Path
) -> tuple[str, bytes]:
    if form == "tensors":
        return mutate.change_tensors(rng, data, canary)
    if form == "packed":
        module = gzip if file.suffix == ".gz" else bz2
        words, text = mutate.change_words(rng, module.decompress(data).decode(), canary)
        return words, module.compress(text.encode("utf-8", "surrogatepass"))
    if form == "json" and file.match("results/*/*/*/*/manifest.json") and rng.random() < 0.15:
        words, text = mutate.forge(json.loads(data))
    elif form == "json":
        words, text = mutate.change_json(rng, json.loads(data), canary)
    elif form == "lines":
        words, text = mutate.change_lines(rng, data.decode(), canary)
    else:
        words, text = mutate.change_words(rng, data.decode(), canary)
    return words, text.encode("utf-8", "surrogatepass")


def one_case(
    case_id: tuple[str, int],
    *,
    seed: int,
    base: Path,
    folder: Path,
    rss: int,
    scores: str,
    verbose: bool,
) -> tuple[str, list[str]]:
    """Return the words of a case and its problems."""
    kind, index = case_id
    rng, subject = random.Random(f"{seed}-{kind}-{index}"), SUBJECTS[kind]
    case = folder / f"{kind}-{index}" / "case"
    shutil.copytree(base, case, symlinks=True)
    canary = case.with_name("canary")
    mutate.evil_yaml(canary)
    words, allowed = change(rng, subject, case, canary)
    argv = rng.choice(subject.commands)
    timeout = SLOW if argv is LEDGER or kind == "library" else TIMEOUT
    variables = {name: str(case / path) for name, path in subject.environment}
    ended = forks.command(
        argv, cwd=case, timeout=timeout, before=lambda: os.environ.update(variables)
    )
    problems = streams(ended, rss=rss, timeout=timeout)
    if canary.exists():
        problems.insert(0, "code from the file was executed")
    text = ended.text + "".join(
        page.read_text("utf-8", "replace") for page in case.glob("page/report.md")
    )
    if match := CONTROL.search(text):
        line = text[: match.end()].splitlines()[-1]
        problems.append(f"control character in its text: {line[-60:]!r}")
    if kind == "features" and ended.code == 0 and scores not in ended.out:
        problems.append("other scores from a damaged cache")
    if subject.sealed and not allowed and ended.code == 0 and _shows(kind, argv, ended.text):
        problems.append(f"exit code 0 without a word: {ended.out.strip()[-80:]!r}")
    if verbose:
        print(f"{words}: {ended.code}, {ended.seconds:.1f} s\n{ended.text}")
    forks.remove(case.parent)
    return f"{words}: {' '.join(argv[:2])}", problems


def _shows(kind: str, argv: list[str], text: str) -> bool:
    """Whether a command relied on a damaged file and said nothing."""
    if argv[0] == "validate":
        return "no checksums" not in text
    if kind == "record_folder":
        return False  # nothing that is shown has changed
    if argv[0] in ("watch", "rcp") or (kind == "log" and argv[0] in ("compare", "report")):
        return False
    return not SAID.search(text)


def main() -> int:
    given = arguments(__doc__, SUBJECTS)
    forks.preload()
    with forks.workspace() as folder:
        base = folder / "base"
        base.mkdir()
        assert forks.in_fork(lambda: make_base(base) or make_more(base) or True), "no base"
        forks.preload(known(base))
        missing = [k for k, s in SUBJECTS.items() if not list(base.glob(s.files))]
        given.kind = [kind for kind in given.kind if kind not in missing]
        rss, scores = forks.in_fork(lambda: _undisturbed(base, folder / "undisturbed"))
        work = partial(
            one_case, seed=given.seed, base=base, folder=folder, rss=rss, scores=scores,
            verbose=given.only is not None,
        )  # fmt: skip
        counts = tally(NAME, given, work)
        print("".join(f"{kind}: no such file here\n" for kind in missing), end="")
    return int(any(tried > right for tried, right in counts.values()))


def _undisturbed(base: Path, case: Path) -> tuple[int, str]:
    """Return the bytes that a run takes, and the line of its scores."""
    shutil.copytree(base, case)
    ended = forks.command(list(TARGETS["squad"].argv), cwd=case, timeout=120)
    return ended.rss, next(line for line in ended.out.splitlines() if '"f1":' in line)


if __name__ == "__main__":
    shim.preloaded()
    sys.exit(main())
