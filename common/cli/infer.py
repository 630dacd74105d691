# SPDX-License-Identifier: Apache-2.0
"""``bertbench infer``: MLPerf Inference's BERT on an exported model."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertbench.benchmarks.bert_inference import options, rules
from bertbench.common.cli.verbs import parser
from bertbench.common.config.parser import Parser
from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.launch.threads import MOST_THREADS, host_threads
from bertbench.common.mlperf import inference
from bertbench.common.results.record import check_name
from bertbench.engines import ENGINES, load
from bertbench.engines.base import EngineOptions
from bertbench.engines.exported import read_export

if TYPE_CHECKING:
    from bertbench.engines.exported import Exported

_TOKENS = {"CPU": 1024, "CPU_REF": 1024}
"""Provider -> tokens of a batch; others get _MANY: 256 full sequences."""
_MANY = 256 * 384


def main(argv: Sequence[str]) -> int:
    """Run the tests; returns 0 VALID and target reached, 1 not, 2 refused, 130 interrupted.

    Raises BadInput or Unsupported before the record is made.
    """
    verb = _parser()
    given = verb.parse_args(argv)
    flags = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    flags |= {"output_dir"} if "output" in flags else set()
    exported = read_export(given.export)
    settings = _settings(given, flags, exported)
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise Unsupported(f"LoadGen is not installed: {install('onnx')}")
    options = dict(text.split("=", 1) for text in given.provider_option)
    load(given.engine).check(EngineOptions(provider=given.provider, provider_options=options))
    from bertbench.benchmarks.bert_inference.run import run

    return run(settings, exported)


def _parser() -> Parser:
    verb = parser(
        "infer",
        epilog="Exit code: 0 VALID, and any target reached; 1 INVALID, failed or target missed; 2 "
        "refused; 130 interrupted.",
    )
    add = verb.add_argument
    add("export", type=Path, metavar="EXPORT", help="folder of an exported model")
    add(
        "--predict_file", type=Path, required=True, metavar="FILE", help="SQuAD v1.1: dev-v1.1.json"
    )
    add("--scenario", choices=inference.SCENARIOS, default="Offline", help="LoadGen's")
    add("--mode", choices=options.MODES, default="both", help="LoadGen's tests")
    add("--engine", default="onnxruntime", metavar="NAME", help=f"one of: {', '.join(ENGINES)}")
    add("--provider", default="CPU", metavar="NAME", help="the engine's execution provider")
    add("--provider_option", action="append", default=[], metavar="KEY=VALUE",
        help="passed to the provider; may be repeated")  # fmt: skip
    add("--num_threads", "--threads", type=int, metavar="N", help="default: the cores")
    add("--batch_tokens", type=int, metavar="N",
        help=f"the most of a batch, padding included; default: {_TOKENS['CPU']} on a CPU, else "
        f"{_MANY}")  # fmt: skip
    add("--padded", action="store_true",
        help="pad every sequence to full length, in the order of the queries")  # fmt: skip
    add("--profile", choices=("official", "non-official"), default="official",
        help="official holds MLPerf's rules; non-official results are marked")  # fmt: skip
    add("--user_conf", type=Path, metavar="FILE", help="LoadGen's settings, in the place of:")
    add(
        "--target_qps",
        type=float,
        metavar="N",
        help="samples/s of Server's schedule; expected in Offline, default: the warm-up's",
    )
    add(
        "--target_latency_ms",
        type=float,
        metavar="MS",
        help="Server's bound; expected in the streams, default: the warm-up's",
    )
    add("--min_duration_s", type=float, metavar="S", help="default: MLPerf's 600")
    add("--min_queries", type=int, metavar="N", help="default: MLPerf's")
    add(
        "--audit", choices=(inference.TEST01,), help="run MLPerf's compliance test after the others"
    )
    add("--target_f1", type=float, metavar="F1",
        help=f"percent; default: bert-99's {inference.TARGET_F1:.3f}; non-official: "
        "none")  # fmt: skip
    verb.add_output(
        "--output_dir", dest="output_dir", default=Path("results"), help="of the records"
    )
    add("--system", metavar="NAME", help="of the record; default: from the device's name")
    return verb


def _settings(given: Namespace, flags: set[str], exported: Exported) -> options.InferenceSettings:
    """Return the run's settings; raises BadInput for flags that do not fit together."""
    asked = rules.Asked(
        **{n: getattr(given, n)
           for n in ("min_duration_s", "min_queries", "target_qps", "target_latency_ms")}
    )  # fmt: skip
    conf = asked.settings(given.scenario)
    if given.user_conf is not None:
        if conf:
            raise BadInput(
                f"--user_conf cannot be combined with {conf[0].text}: set it in the file"
            )
        conf = rules.read_user_conf(given.user_conf, given.scenario)
    if given.profile == "official":
        rules.check_official(conf, given.scenario)
    if given.scenario == "Server" and not any(s.key == "target_qps" for s in conf):
        raise BadInput("--scenario Server: give the rate of its schedule with --target_qps")
    if given.audit is not None and given.mode != "both":
        raise BadInput(f"--audit {given.audit} compares both tests: leave out --mode {given.mode}")
    _check_numbers(given)
    if given.system is not None:
        check_name("system", given.system)
    target = given.target_f1
    if target is None and given.profile == "official":
        target = inference.TARGET_F1
    values: dict[str, Any] = dict(rules.effective(conf, given.scenario))
    values |= {n: getattr(exported, n) for n in (*inference.LENGTHS, "lowercase")}
    return options.InferenceSettings(
        recipe=options.InferenceRecipe(
            scenario=given.scenario,
            profile=given.profile,
            target_f1=target,
            **values,
        ),
        impl=options.InferenceImpl(
            engine=given.engine,
            provider=given.provider,
            provider_options=tuple(given.provider_option),
            num_threads=given.num_threads or host_threads(1),
            batch_tokens=given.batch_tokens or _TOKENS.get(given.provider.upper(), _MANY),
            padded=given.padded,
        ),
        run=options.InferenceRun(
            export=given.export, asked=asked,
            **{n: getattr(given, n) for n in ("predict_file", "mode", "audit", "user_conf",
                                              "output_dir", "system", "json")},
        ),
        flags=flags,
    )  # fmt: skip


def _check_numbers(given: Namespace) -> None:
    """Raise BadInput for a number out of its range, or an option that is none."""
    ranges: dict[str, tuple[float, float]] = {
        "num_threads": (1, MOST_THREADS), "batch_tokens": (1, 1 << 30), "target_f1": (0, 100)
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        value: Any = getattr(given, name)
        if value is not None and not low <= value <= high:
            raise BadInput(f"--{name} {value}: it must be from {low} to {high}")
    for text in given.provider_option:
        if "=" not in text.strip("="):
            raise BadInput(f"--provider_option {text}: it must be KEY=VALUE")
