# SPDX-License-Identifier: Apache-2.0
"""``bertbench rerun``: the run of a record once more, with its settings and on its data.

The settings are those of config.json, so that records from before settings.toml can be rerun too.
Other code and other data are printed before the run starts; other data are refused unless
``--force`` is given.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bertbench.benchmarks import load, names, preset, resolve
from bertbench.common.cli.verbs import parser
from bertbench.common.config.launched import ranks
from bertbench.common.config.recipe import Settings
from bertbench.common.config.settings_file import Given, changed, words_of
from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.launch.launcher import torchrun
from bertbench.common.measure.code import code_hash, git_state
from bertbench.common.results.result import Result
from bertbench.common.results.store import load_results

_NO_DATA = "synthetic data or random weights"


def main(argv: Sequence[str]) -> int:
    """Run again; returns the run's exit code. Raises BadInput where that is another run."""
    verb = parser(
        "rerun",
        usage="bertbench rerun RECORD [--force] [flags of the run]",
        epilog="The flags win over the record's settings. Exit code: as of run",
    )
    verb.add_argument("record", metavar="RECORD", help="the folder of one run")
    verb.add_argument("--force", action="store_true", help="run on other data or processes, too")
    if {"-h", "--help"} & set(argv):
        verb.parse_args(["--help"])
    words = [word for word in argv if word != "--force"]
    if not words or words[0].startswith("-"):
        raise BadInput(f"name the record's folder first, before all flags: {verb.usage}")
    path, flags, force = Path(words[0]), words[1:], len(words) < len(argv)
    record = _record(path)
    settings = settings_of(record, flags)
    there, here = record.world_size or 1, ranks().size
    if there != here and not force:
        start = shlex.join(torchrun(sys.executable, os.environ, there, 1)) if there > 1 else ""
        again = f"{start} bertbench rerun {shlex.join(argv)}".strip()
        raise BadInput(
            f"{path} is a run of {there} processes, not of {here}: `{again}`, or --force"
        )
    if ranks().rank == 0:
        for text in differences(record):
            print(f"rerun: {text}", file=sys.stderr)
    if ranks().rank == 0 and not settings.run.dry_run:
        other = other_inputs(record, settings)
        for text in other:
            print(f"rerun: {text}", file=sys.stderr)
        if other and not force:
            raise BadInput(f"{path}: not on the same data: {'; '.join(other)}. --force runs it")
    from bertbench.common.run import run

    return run(settings).exit_code


def settings_of(record: Result, flags: Sequence[str] = ()) -> Settings:
    """Return the settings of a record, and flags, which win.

    Raises BadInput for a recipe or value that this version lacks.
    """
    assert record.preset is not None
    own = preset(record.preset)
    words = words_of(changed(record.config, own))
    seed = [] if record.seed is None else ["--seed", str(record.seed)]
    return resolve(own.name, flags, Given(str(record.path), own.name, [*words, *seed]))


def differences(record: Result) -> list[str]:
    """Return a line on the code and one on a continued run, where they differ from a run now."""
    manifest, state = record.manifest, git_state()
    found = []
    before, now = record.code_hash, code_hash()
    if before != now:
        found.append(
            f"the code differs: the record is of {_code(manifest.get('commit'), before)}, "
            f"this is {_code(state['commit'], now)}"
        )
    if record.resumed:
        found.append("the record continues another run; this one starts at its beginning")
    return found


def other_inputs(record: Result, settings: Settings) -> list[str]:
    """Return a line for each input whose recorded identity is not that of the input now.

    It finds or makes the data as the run does. Raises BadInput where none is found.
    """
    source = load(settings.preset.benchmark).prepare(settings)
    recorded = record.manifest.get("inputs") or {}
    now = {"data": source.hash, "checkpoint": source.checkpoint_hash}
    found = []
    for name, identity in now.items():
        if name not in recorded:
            found.append(f"{name}: the record has no identity to compare with")
        elif (here := identity()) != recorded[name]:
            texts = [shown(i or _NO_DATA, 40) for i in (recorded[name], here)]
            found.append(f"{name}: the record has {texts[0]}, here is {texts[1]}")
    return found


def _record(path: Path) -> Result:
    """Return the one run of this kind in ``path``; raises BadInput for others."""
    results, damaged = load_results([path], references=False)
    if damaged:
        raise BadInput(f"{shown(path)}: {damaged[0].problem}")
    if len(results) != 1 or results[0].benchmark not in names() or results[0].preset is None:
        raise BadInput(f"{shown(path)} is not the record of one training run: name its folder")
    return results[0]


def _code(commit: object, hashed: str | None) -> str:
    return f"{shown(hashed or 'unknown', 16)} of commit {shown(commit or 'unknown', 12)}"
