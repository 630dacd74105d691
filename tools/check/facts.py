# SPDX-License-Identifier: Apache-2.0
"""Describe the device, calibrate it, and run the contract tests on it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import signal
import subprocess
import sys
from xml.etree import ElementTree

from bertbench.common.cli.main import main as command_line
from bertbench.common.errors import Unsupported
from bertbench.common.measure.code import ROOT
from check.device import Check, choose_precision
from check.figure import NotAvailable, SectionReport
from check.runs import command

CONTRACT_S, GRACE_S = 150, 20
FAST_CONTRACT = (
    "probe or describe or capabilities or local_rank or amp or loss_scaling or unknown or seed "
    "or ten_steps"
)
"""Contract tests of --tiny, as pytest's -k takes them: continuous integration runs all."""


class CheckFailed(Exception):
    """The device contradicts its adapter."""


def facts(check: Check, report: SectionReport) -> None:
    """Report description, capabilities, and the mantissa bits of each claimed precision.

    Raises CheckFailed for a precision that the device does not have.
    """
    backend = check.open()
    info, can = backend.describe(), backend.capabilities
    for name in ("name", "driver", "runtime", "simulated"):
        value = getattr(info, name)
        report.fact(name, "unknown" if value is None else value)
    for name, value in sorted(info.extras.items()):
        report.fact(name, value)
    for name in ("precisions", "kernels", "compilers", "telemetry"):
        report.fact(name, ", ".join(getattr(can, name)) or "none")
    for name in ("collective", "device_timer", "memory_stats", "pinned_memory", "graphs"):
        report.fact(name, getattr(can, name) or "no")
    for name, why in sorted(can.notes.items()):
        report.fact(f"missing: {name}", why)
    memory = info.memory_bytes
    report.figure(
        "device memory",
        None if memory is None else memory / 2**30,
        "GiB",
        "memory of the device, as its module reports it",
        "" if memory is not None else "the device does not report it",
    )
    report.figure("devices", backend.device_count(), "devices", "devices this process may use")
    wrong = []
    for precision in can.precisions:
        try:
            found = backend.verify_precision(precision)
        except Unsupported as error:
            wrong.append(str(error))
            continue
        report.figure(
            f"{precision}: mantissa bits",
            int(found.pop("product_mantissa_bits")),
            "bits",
            "explicit mantissa bits of its inputs that a matrix product keeps (float32 has 23)",
        )
        for name, value in found.items():
            report.fact(f"{precision}: {name}", value)
    if wrong:
        raise CheckFailed("; ".join(wrong))


def calibrate(check: Check, report: SectionReport) -> None:
    """Run `bertbench calibrate`, the denominators of mfu_calibrated; raise CheckFailed."""
    whole = ["calibrate", "--backend", check.backend, "--output_dir", str(check.results), "--json"]
    if check.tiny:
        whole += ["--quick", "--precision", choose_precision(check, check.open(), "bf16")]
    text = io.StringIO()
    with command(whole), contextlib.redirect_stdout(text):
        code = command_line(whole)
    if code:
        raise CheckFailed(f"bertbench calibrate: exit code {code}")
    content = json.loads(text.getvalue().strip().splitlines()[-1])
    product = content["definition"].split(" Copy:")[0]
    for precision, measured in content["precisions"].items():
        best = measured["best"]
        slowest = min(measured["products"], key=lambda p: p["flops_per_second"])
        shape = f", {best['m']} x {best['k']} by {best['k']} x {best['n']}"
        for name, rank, one, end in (
            ("best", "fastest", best, shape),
            ("slowest", "slowest", slowest, ""),
        ):
            report.figure(
                f"{precision}: {name} matrix product",
                one["flops_per_second"] / 1e12,
                "TFLOP/s",
                f"the {rank} of BERT's shapes; {product}",
                f"{one['model']} {one['layer']} {one['product']}{end}",
            )
    report.figure(
        "copy",
        content["copy"]["bytes_per_second"] / 1e9,
        "GB/s",
        "bytes read and bytes written by a copy on the device / its seconds",
    )
    report.fact("clock", content["clock"])
    report.fact("all products", "calibration.json, beside the records")


def contract(check: Check, report: SectionReport) -> None:
    """Run tests/contract with ten-step parity; raise CheckFailed or NotAvailable."""
    if importlib.util.find_spec("pytest") is None:
        raise NotAvailable("package pytest is not installed")
    results = check.folder / "contract.xml"
    tests = ROOT / "tests" / "contract"
    arguments = [
        sys.executable, "-m", "pytest", str(tests), "--backend", check.backend, "-rfEs",
        "--durations=12", "-p", "no:cacheprovider", "--rootdir", str(ROOT),
        "--junitxml", str(results.resolve()), "-o", "junit_family=xunit2",
    ]  # fmt: skip
    if check.tiny:
        arguments += ["-k", FAST_CONTRACT]
    process = subprocess.Popen(arguments, cwd=ROOT)
    late, limit = False, check.size(CONTRACT_S, 360)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        late = True
        process.send_signal(signal.SIGINT)  # so that pytest writes its results until then
        code = process.wait(GRACE_S)
    if not results.exists():
        raise CheckFailed(f"pytest ended with exit code {code} and left no results")
    failed = report_contract(report, results.read_text(encoding="utf-8"))
    results.unlink()
    if failed:
        raise CheckFailed(f"{len(failed)} of the contract's tests failed: {'; '.join(failed)}")
    if late:
        raise CheckFailed(f"stopped after {limit} s; the counts are of the tests until then")
    if code:
        raise CheckFailed(f"pytest ended with exit code {code}")


def report_contract(report: SectionReport, xml: str) -> list[str]:
    """Report counts from pytest's JUnit file; return the names of the failed tests."""
    cases = list(ElementTree.fromstring(xml).iter("testcase"))
    kinds: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        inside = {child.tag for child in case}
        kind = "failed" if inside & {"failure", "error"} else "passed"
        kind = "skipped" if "skipped" in inside else kind
        kinds[kind].append(case.get("name", "?"))
    for kind, names in kinds.items():
        definition = (
            f"tests of tests/contract that {'were' if kind == 'skipped' else 'have'} {kind}"
        )
        report.figure(kind, len(names), "tests", definition)
    for case in cases:
        for child in case:
            if child.tag == "skipped":
                report.fact(f"skipped {case.get('name')}", child.get("message", ""))
    return kinds["failed"]
