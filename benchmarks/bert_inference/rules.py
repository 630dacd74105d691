# SPDX-License-Identifier: Apache-2.0
"""The settings of a LoadGen test: MLPerf's rules, user.conf, and the non-official profile.

Source: loadgen/mlperf.conf and test_settings.h of mlcommons/inference (rounds 6.0 and 6.1), and
inference_rules.adoc. LoadGen has mlperf.conf compiled in; a user.conf changes single settings.
Times of a user.conf are in milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bertbench.common.errors import BadInput
from bertbench.common.files import read_bytes, shown
from bertbench.common.mlperf.inference import (
    MIN_DURATION_MS,
    MIN_QUERIES,
    MODEL,
    SAMPLES,
    SCENARIOS,
    SERVER_LATENCY_MS,
    Scenario,
)

_EXPECTED = {
    "Offline": ("target_qps",),
    "Server": ("target_qps", "coalesce_queries", "max_async_queries"),
    "SingleStream": ("target_latency",),
    "MultiStream": ("target_latency",),
}
"""What a submitter sets freely: expectations, and how queries are handed over."""
_KEYS = frozenset({
    "target_qps", "target_latency", "target_latency_percentile", "min_duration", "max_duration",
    "min_query_count", "max_query_count", "performance_sample_count_override",
    "accuracy_sample_count_override", "samples_per_query", "coalesce_queries", "max_async_queries",
    "qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_rng_seed",
    "accuracy_log_probability", "accuracy_log_sampling_target", "performance_issue_unique",
    "performance_issue_same", "performance_issue_same_index", "sample_concatenate_permutation",
    "print_timestamps",
})  # fmt: skip
"""Keys of a user.conf that LoadGen reads for BERT; it ignores others without a word."""
_LARGEST = 1 << 20
_LINE = re.compile(r"([\w*.-]+)\.(\w+|\*)\.(\w+)\s*=\s*(\S+)")


class Setting(NamedTuple):
    """One line of a user.conf that holds for this model and scenario."""

    key: str
    value: float
    text: str
    """The line, and its place, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The flags that replace a user.conf; None leaves LoadGen's value."""

    min_duration_s: float | None = None
    min_queries: int | None = None
    target_qps: float | None = None
    target_latency_ms: float | None = None

    def settings(self, scenario: Scenario) -> list[Setting]:
        """Return them as settings; raises BadInput for one that the scenario lacks."""
        if self.target_qps is not None and scenario not in ("Offline", "Server"):
            raise BadInput(f"--target_qps: {scenario} has no rate; give --target_latency_ms")
        if self.target_latency_ms is not None and scenario == "Offline":
            raise BadInput("--target_latency_ms: Offline has no latency; give --target_qps")
        found = []
        for flag, key, factor in (
            ("min_duration_s", "min_duration", 1000.0),
            ("min_queries", "min_query_count", 1.0),
            ("target_qps", "target_qps", 1.0),
            ("target_latency_ms", "target_latency", 1.0),
        ):
            if (value := getattr(self, flag)) is not None:
                if not 0 < value < 1e12:
                    raise BadInput(f"--{flag} {value}: it must be above 0")
                found.append(Setting(key, value * factor, f"--{flag} {value:g}"))
                _check_whole(found[-1], scenario)
        return found


def read_user_conf(path: Path, scenario: Scenario) -> list[Setting]:
    """Return the settings of a file that hold for BERT and this scenario, the last of each key.

    Raises BadInput, with the line, for one that LoadGen would not understand or ignore.
    """
    try:
        text = read_bytes(path, _LARGEST).decode("utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"--user_conf {shown(path)}: {shown(error)}") from error
    found: dict[str, Setting] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        place = f"{shown(path)}:{number}: {shown(words, 100)}"
        match = _LINE.fullmatch(words)
        if match is None:
            raise BadInput(f"{place}: it must be MODEL.SCENARIO.KEY = VALUE")
        model, where, key, value = match.groups()
        if where not in ("*", *SCENARIOS):
            raise BadInput(f"{place}: unknown scenario; known: {', '.join(SCENARIOS)}")
        if key not in _KEYS:
            raise BadInput(
                f"{place}: LoadGen would ignore {key}; known: {', '.join(sorted(_KEYS))}"
            )
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount):
            raise BadInput(f"{place}: its value must be a number")
        _check_whole(Setting(key, amount, place), scenario)
        if model in ("*", MODEL) and where in ("*", scenario):
            found[key] = Setting(key, amount, place)
    return list(found.values())


def _check_whole(setting: Setting, scenario: Scenario) -> None:
    """Raise BadInput for a fraction that LoadGen would cut off."""
    fractions = {"target_qps", "target_latency_percentile", "accuracy_log_probability"}
    fractions |= {"target_latency"} if scenario in ("SingleStream", "MultiStream") else set()
    if setting.key not in fractions and setting.value != int(setting.value):
        raise BadInput(f"{setting.text}: LoadGen reads whole numbers (milliseconds, queries) only")


def check_official(settings: list[Setting], scenario: Scenario) -> None:
    """Raise BadInput for the first setting that MLPerf's rules do not allow."""
    least = {
        "min_duration": MIN_DURATION_MS,
        "min_query_count": MIN_QUERIES[scenario],
        "performance_sample_count_override": SAMPLES,
    }
    for key, value, text in settings:
        if key in least:
            if value < least[key]:
                raise BadInput(_refusal(text, f"{key} must be at least {least[key]:,}"))
        elif key == "target_latency" and scenario == "Server":
            if value > SERVER_LATENCY_MS:
                raise BadInput(_refusal(text, f"the bound is {SERVER_LATENCY_MS} ms"))
        elif key not in _EXPECTED[scenario]:
            raise BadInput(_refusal(text, f"{key} is fixed in {scenario}"))


def _refusal(text: str, rule: str) -> str:
    return f"{text}: MLPerf's rules: {rule}; for a test of your own: --profile non-official"


def conf_lines(settings: list[Setting], expected: Mapping[str, float], scenario: str) -> str:
    """Return the text of the user.conf that LoadGen gets; ``expected`` fills missing keys."""
    values = dict(expected) | {s.key: s.value for s in settings}
    return "".join(_lines(values, scenario))


def _lines(values: Mapping[str, float], scenario: str) -> Iterator[str]:
    for key, value in values.items():
        number = f"{value:.17g}" if value != int(value) else str(int(value))
        yield f"{MODEL}.{scenario}.{key} = {number}\n"


def effective(settings: list[Setting], scenario: Scenario) -> dict[str, float | None]:
    """Return the values in effect that belong to the recipe."""
    values = {s.key: s.value for s in settings}
    bound = values.get("target_latency", SERVER_LATENCY_MS) if scenario == "Server" else None
    return {
        "min_duration_ms": values.get("min_duration", MIN_DURATION_MS),
        "min_query_count": values.get("min_query_count", MIN_QUERIES[scenario]),
        "latency_bound_ms": bound,
    }
