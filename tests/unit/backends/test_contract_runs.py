# SPDX-License-Identifier: Apache-2.0
"""The contract test itself: good adapters pass it, and each broken one fails what it must."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from broken_adapters import BROKEN
from fake_vendors import entry_point

from bertbench.backends import ENTRY_POINTS
from bertbench.backends.simulated import build
from bertbench.common.errors import Unsupported

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests" / "example_backend"

SKIPPED_BY_ALL = {
    *(f"test_an_unclaimed_precision_is_refused[{name}]" for name in ("fp32", "bf16", "fp16")),
    "test_compilers_compute_the_same",
    "test_a_claimed_precision_is_really_used[fp8]",
    "test_masked_attention_equals_the_reference[fp8]",
    "test_ten_steps_equal_the_reference[fp8]",
}
"""What a complete device claims cannot be refused, and no simulated device compiles or has FP8."""
WITHOUT_TF32 = {
    "test_a_claimed_precision_is_really_used[tf32]",
    "test_masked_attention_equals_the_reference[tf32]",
    "test_ten_steps_equal_the_reference[tf32]",
    "test_fp32_comes_back_after_tf32",
}
SIMULATED_GCU = {"BERTBENCH_SIMULATE": "gcu"}

Outcomes = dict[str, tuple[str, str]]
"""Test -> (passed | failed | error | skipped, why)."""


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        build.library()
    except Unsupported as error:
        pytest.skip(str(error))


def run_contract(
    names: Sequence[str], folder: Path, *options: str, paths: Sequence[Path] = (), **env: str
) -> dict[str, Outcomes]:
    """Run the contract for each name, all in one process of its own; no test is ever timed here."""
    code = (
        "import pytest, sys\nfolder, names, options = sys.argv[1], sys.argv[2], sys.argv[3:]\n"
        "for name in names.split(','):\n"
        "    pytest.main(['tests/contract', '-p', 'no:cacheprovider', '-p', 'no:xdist',\n"
        "                 '--ignore=tests/contract/test_engine_contract.py',\n"
        "                 '--tb=line', '--backend', name, f'--junitxml={folder}/{name}.xml',\n"
        "                 *options])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths)), **env}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), ",".join(names), *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    found: dict[str, Outcomes] = {}
    for name in names:
        file = folder / f"{name}.xml"
        assert file.exists(), f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        found[name] = {
            case.get("name", ""): _outcome(case)
            for case in ElementTree.parse(file).iter("testcase")
        }
    return found


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for kind, what in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        part = case.find(kind)
        if part is not None:
            return what, part.get("message", "")
    return "passed", ""


def having(outcomes: Outcomes, *kinds: str) -> dict[str, str]:
    return {name: why for name, (kind, why) in outcomes.items() if kind in kinds}


def test_the_simulated_gcu_keeps_the_contract(compiler: None, tmp_path: Path) -> None:
    outcomes = run_contract(["gcu"], tmp_path, **SIMULATED_GCU)["gcu"]
    assert having(outcomes, "failed", "error") == {}
    assert set(having(outcomes, "skipped")) == SKIPPED_BY_ALL | WITHOUT_TF32
    assert len(having(outcomes, "passed")) > 30


def test_the_simulated_gcu_keeps_it_with_tf32_and_exact_gelu(
    compiler: None, tmp_path: Path
) -> None:
    """Both are decided when the driver starts; such a process has no fp32."""
    variables = {"ENFLAME_ENABLE_TF32": "true", "ENFLAME_PT_GELU_ERF_ENABLE": "true"}
    chosen = ("-k", "tf32 or fp32 or kernels_equal")
    outcomes = run_contract(["gcu"], tmp_path, *chosen, **SIMULATED_GCU, **variables)["gcu"]
    assert having(outcomes, "failed", "error") == {}
    assert set(having(outcomes, "skipped")) == {
        "test_an_unclaimed_precision_is_refused[tf32]",
        "test_a_claimed_precision_is_really_used[fp32]",
        "test_ten_steps_equal_the_reference[fp32]",
        "test_masked_attention_equals_the_reference[fp32]",
        "test_fp32_comes_back_after_tf32",
    }


def test_a_device_that_lacks_a_precision_keeps_it(compiler: None, tmp_path: Path) -> None:
    variables = {**SIMULATED_GCU, "BERTBENCH_SIMULATED_LACKS": "bf16"}
    outcomes = run_contract(["gcu"], tmp_path, "-k", "precision", **variables)["gcu"]
    assert having(outcomes, "failed", "error") == {}
    assert outcomes["test_an_unclaimed_precision_is_refused[bf16]"][0] == "passed"
    kind, why = outcomes["test_a_claimed_precision_is_really_used[bf16]"]
    assert kind == "skipped" and "gcu does not claim bf16" in why


def test_the_example_package_keeps_the_contract(compiler: None, tmp_path: Path) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"][ENTRY_POINTS].items()
    entry_point(tmp_path, project["name"], ENTRY_POINTS, name, target)
    outcomes = run_contract([name], tmp_path, paths=(tmp_path, EXAMPLE / "src"))[name]
    assert having(outcomes, "failed", "error") == {}
    assert set(having(outcomes, "skipped")) == SKIPPED_BY_ALL | WITHOUT_TF32
    assert len(having(outcomes, "passed")) > 30


def test_each_broken_adapter_fails_what_it_must(tmp_path: Path) -> None:
    """All in one process, without the tests that start processes or whole runs."""
    for cls in BROKEN:
        target = f"broken_adapters:{cls.__name__}"
        entry_point(tmp_path, f"package-{cls.name}", ENTRY_POINTS, cls.name, target)
    names = [cls.name for cls in BROKEN]
    quick = ("-k", "not two_ranks and not run_out_of_memory")
    found = run_contract(names, tmp_path, *quick, paths=(tmp_path, Path(__file__).parent))
    failed = {name: having(outcomes, "failed", "error") for name, outcomes in found.items()}
    # A processor without bf16 skips its part of what a broken optimizer or kernel fails.
    expected = {
        cls.name: set(cls.fails) - set(having(found[cls.name], "skipped")) for cls in BROKEN
    }
    assert {name: set(tests) for name, tests in failed.items()} == expected, failed
    assert all(expected.values())


def test_work_still_in_the_queue_is_missed_and_that_is_found(
    compiler: None, tmp_path: Path
) -> None:
    """On a device whose work goes on after the call that launched it: 5 ms a kernel."""
    slow = {"BERTBENCH_SIMULATED_LATENCY_US": "5000"}
    for name in ("hasty", "never_waits"):
        entry_point(tmp_path, f"package-{name}", ENTRY_POINTS, name, f"broken_adapters:{name}")
    found = run_contract(
        ["hasty", "never_waits"], tmp_path, "-k", "timer or synchronize",
        paths=(tmp_path, Path(__file__).parent), **SIMULATED_GCU, **slow,
    )  # fmt: skip
    assert set(having(found["hasty"], "failed", "error")) >= {
        "test_timer_agrees_with_the_arrival_of_the_result[the adapter's]",
        "test_timer_blocks_only_where_its_clock_demands_it",
    }
    assert set(having(found["hasty"], "passed")) >= {
        "test_timer_agrees_with_the_arrival_of_the_result[host-sync]",
        "test_synchronize_waits_for_the_device",
    }
    assert set(having(found["never_waits"], "failed", "error")) >= {
        "test_timer_agrees_with_the_arrival_of_the_result[host-sync]",
        "test_synchronize_waits_for_the_device",
    }


def test_a_number_read_from_the_device_in_a_step_is_found(compiler: None, tmp_path: Path) -> None:
    entry_point(tmp_path, "package-peeks", ENTRY_POINTS, "peeks", "broken_adapters:peeks")
    found = run_contract(
        ["gcu", "peeks"], tmp_path, "-k", "training_waits",
        paths=(tmp_path, Path(__file__).parent), **SIMULATED_GCU,
    )  # fmt: skip
    assert having(found["gcu"], "failed", "error") == {}
    (why,) = having(found["peeks"], "failed").values()
    assert "the host waits for the device" in why and "_local_scalar" in why
