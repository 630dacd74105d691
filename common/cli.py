# SPDX-License-Identifier: Apache-2.0
"""The command line: ``bertbench VERB``. Every verb takes --help and --json.

Exit codes: 0 done, and any target reached; 1 it ran and failed, missed its target, or problems
were found; 2 refused before anything ran; 130 interrupted, with a checkpoint if they are on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import BadInput, BertbenchError
from common.recipe import Preset, Settings, origins, plain, recipe_hash

USAGE = """\
bertbench: a vendor-portable BERT benchmark suite

  bertbench doctor [BACKEND]     what runs here: backends, devices, precisions, telemetry
  bertbench list                 the recipes, what they need and how long they take
  bertbench describe RECIPE      every value of a recipe, its hash, its inputs
  bertbench run RECIPE [flags]   run one; --dry_run says what would run
  bertbench calibrate            the rates this device reaches: what utilisation is a share of
  bertbench score squad          EM and F1 of any predictions file, as the official script
  bertbench data VERB            prepare, pack or check training data
  bertbench repeat N -- run ...  fresh processes, one seed after the other; --against takes turns
  bertbench scale -- run ...     the same on 1, 2, 4, 8 devices: throughput, efficiency
  bertbench compare A B          two groups of runs: ratios, intervals, significance
  bertbench report --out DIR     all results as one HTML file that opens offline, and Markdown
  bertbench validate RUN...      check records: schema, checksums, protocol, MLPerf compliance
  bertbench watch RUN...         live view of runs that are under way, here or through a pipe
  bertbench rcp RUN...           MLPerf's convergence check: no faster than the reference
  bertbench export-weights RUN   its weights as Hugging Face and NVIDIA's scripts read them
  bertbench export-mlperf RUN... a submission that MLPerf's package checker accepts
  bertbench import-mlperf FILE   published MLPerf BERT logs as figures to compare with
  bertbench new-backend NAME     a package for a device that is not here yet

Each verb takes --help and --json. RECIPE is a name from `bertbench list`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if args else 2
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        print(f"bertbench: unknown verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        code = VERBS[verb](rest)
        sys.stdout.flush()  # here, so that a reader who has left is noticed here
        return code
    except KeyboardInterrupt:
        print(f"bertbench {verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BertbenchError as error:
        if "--json" in rest:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"bertbench {verb}: {error}", file=sys.stderr)
        return 2


def _doctor(args: list[str]) -> int:
    from common.doctor import examine, render

    parser = _parser("doctor", "What can run here, and if not why not.")
    parser.add_argument("backend", nargs="?", help="look at this one only")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds for each backend (30)")
    given = parser.parse_args(args)
    report = examine(given.backend, given.timeout)
    print(json.dumps(report, indent=1) if given.json else render(report))
    # Of all backends some are always missing; the one that was named should work.
    return 0 if given.backend is None or report["backends"][0]["ok"] else 1


def _new_backend(args: list[str]) -> int:
    from backends.new_backend import create, next_steps

    parser = _parser("new-backend", "Write the skeleton of a package that adds a backend.")
    parser.add_argument("name", help="its --backend: lower-case letters, digits and _")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where (here)")
    given = parser.parse_args(args)
    made = create(given.name, given.output)
    if given.json:
        print(json.dumps({"package": str(made), "next": next_steps(given.name, made)}))
    else:
        print(f"wrote {made}: fill in {made / given.name}_bertbench.py, then")
        print("\n".join(f"  {command}" for command in next_steps(given.name, made)))
        print("docs/adding-a-backend.md goes through it")
    return 0


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"bertbench {verb}", description=description)
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


class Parser(argparse.ArgumentParser):
    """Refuses as every verb does."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().strip()}")


def presets() -> dict[str, Preset]:
    """Every named recipe of every benchmark."""
    from benchmarks import BENCHMARKS

    found: dict[str, Preset] = {}
    for benchmark in BENCHMARKS:
        found |= importlib.import_module(f"benchmarks.{benchmark}.recipes").PRESETS
    return found


def _preset(name: str) -> Preset:
    known = presets()
    if name not in known:
        raise BadInput(f"unknown recipe {name!r}; there are: {', '.join(known)}")
    return known[name]


def _list(args: list[str]) -> int:
    _only_flags("list", args, "--json")
    known = presets()
    if "--json" in args:
        rows = [
            {f: getattr(p, f) for f in ("name", "benchmark", "summary", "data", "duration")}
            for p in known.values()
        ]
        print(json.dumps(rows, indent=1))
        return 0
    width = 2 + max(map(len, known))
    for preset in known.values():
        print(f"{preset.name:<{width}}{preset.summary}")
        print(f"{'':<{width}}  data: {preset.data}\n{'':<{width}}  time: {preset.duration}")
    return 0


def _describe(args: list[str]) -> int:
    names = [a for a in args if not a.startswith("-")]
    _only_flags("describe", [a for a in args if a.startswith("-")], "--json")
    if len(names) != 1:
        raise BadInput(f"name one recipe: bertbench describe RECIPE; there are {_names()}")
    preset = _preset(names[0])
    settings = resolve(preset.name, [])
    content = {
        "name": preset.name,
        "benchmark": preset.benchmark,
        "summary": preset.summary,
        "data": preset.data,
        "duration": preset.duration,
        "recipe_hash_without_inputs": recipe_hash(preset.recipe),
        "writes": "results/<system>/<benchmark>/<run>/: manifest, config, system, steps, logs",
        **{part: plain(getattr(preset, part)) for part in ("recipe", "impl", "run")},
        "origins": dict(settings.origins),
    }
    if "--json" in args:
        print(json.dumps(content, indent=1))
        return 0
    for key in ("name", "summary", "data", "duration", "writes"):
        print(f"{key:<10}{content[key]}")
    print(f"{'hash':<10}{content['recipe_hash_without_inputs']} (recipe alone, without its inputs)")
    for part in ("recipe", "impl", "run"):
        print(f"\n{part}")
        _print_values(content[part], settings.origins)
    return 0


def _print_values(values: dict[str, Any], sources: Any, indent: str = "  ") -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _print_values(value, sources, indent)
        else:
            print(f"{indent}{key:<34}{value!s:<28}{sources.get(key, '')}")


def _run(args: list[str]) -> int:
    if not args or args[0].startswith("-"):
        if args and args[0] in ("-h", "--help"):
            print(f"usage: bertbench run RECIPE [flags]\n\nrecipes: {_names()}")
            print("bertbench run RECIPE --help lists the flags of a recipe")
            return 0
        raise BadInput(f"name a recipe: bertbench run RECIPE [flags]; there are {_names()}")
    settings = resolve(args[0], args[1:])
    from common.runner import run

    return run(settings)


def resolve(name: str, flags: Sequence[str]) -> Settings:
    """A preset with flags applied; raises BadInput or Unsupported with the fix."""
    import tyro

    preset = _preset(name)
    translate = importlib.import_module(f"benchmarks.{preset.benchmark}.flags").translate
    own, notes = translate(list(flags), preset.recipe)
    kinds = [(part, type(getattr(preset, part))) for part in ("recipe", "impl", "run")]
    everything = dataclasses.make_dataclass("everything", kinds, kw_only=True, frozen=True)
    base = {part: getattr(preset, part) for part, _ in kinds}
    try:
        chosen: Any = tyro.cli(
            everything,
            default=everything(**base),
            args=own,
            prog=f"bertbench run {name}",
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except ValueError as error:
        raise BadInput(str(error)) from error
    values = {part: getattr(chosen, part) for part, _ in kinds}
    given = {
        a[2:].split("=")[0].replace("-", "_").removeprefix("no_") for a in own if a[:2] == "--"
    }
    return Settings(
        preset=preset, **values, origins=origins(values, preset, given), notes=tuple(notes)
    )


def _score(args: list[str]) -> int:
    scored = ("squad",)
    if not args or args[0] not in (*scored, "-h", "--help"):
        raise BadInput(f"name what to score: bertbench score {'|'.join(scored)} [flags]")
    if args[0] not in scored:
        print(f"usage: bertbench score {'|'.join(scored)} [flags]; each takes --help")
        return 0
    verb = importlib.import_module(f"benchmarks.bert_{args[0]}.verbs")
    return int(verb.score_main(args[1:]))


def _data(args: list[str]) -> int:
    from common.data.cli import main as data_main

    return data_main(args)


def _calibrate(args: list[str]) -> int:
    from common.calibrate import main as calibrate_main

    return calibrate_main(args)


def _repeat(args: list[str]) -> int:
    from common.repeat import main as repeat_main

    return repeat_main(args)


def _scale(args: list[str]) -> int:
    from common.scale import main as scale_main

    return scale_main(args)


def _compare(args: list[str]) -> int:
    from common.results.compare import main as compare_main

    return compare_main(args)


def _validate(args: list[str]) -> int:
    from common.results.validate import main as validate_main

    return validate_main(args)


def _export_mlperf(args: list[str]) -> int:
    from common.results.export import main as export_main

    return export_main(args)


def _export_weights(args: list[str]) -> int:
    from common.export_weights import main as export_main

    return export_main(args)


def _watch(args: list[str]) -> int:
    from common.watch import main as watch_main

    return watch_main(args)


def _rcp(args: list[str]) -> int:
    from common.results.rcp import main as rcp_main

    return rcp_main(args)


def _report(args: list[str]) -> int:
    from common.results.report import main as report_main

    return report_main(args)


def _import_mlperf(args: list[str]) -> int:
    from common.results.import_mlperf import main as import_main

    return import_main(args)


def _names() -> str:
    return ", ".join(presets())


def _only_flags(verb: str, args: Sequence[str], *known: str) -> None:
    if "-h" in args or "--help" in args:
        print(f"usage: bertbench {verb} {' '.join(f'[{k}]' for k in known)}\n\n{USAGE}")
        raise SystemExit(0)
    for a in args:
        if a not in known:
            raise BadInput(f"{verb} does not take {a!r}; it takes {', '.join(known)}")


VERBS: dict[str, Callable[[list[str]], int]] = {
    "doctor": _doctor,
    "list": _list,
    "describe": _describe,
    "run": _run,
    "calibrate": _calibrate,
    "score": _score,
    "data": _data,
    "repeat": _repeat,
    "scale": _scale,
    "compare": _compare,
    "report": _report,
    "validate": _validate,
    "export-weights": _export_weights,
    "export-mlperf": _export_mlperf,
    "rcp": _rcp,
    "watch": _watch,
    "import-mlperf": _import_mlperf,
    "new-backend": _new_backend,
}

if __name__ == "__main__":
    sys.exit(main())
