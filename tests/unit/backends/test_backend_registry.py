# SPDX-License-Identifier: Apache-2.0
"""Names to backends: built in, from other packages, simulated, and by ``auto``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_vendors import FULL, THIN, entry_point, offer

from bertbench import backends
from bertbench.backends import probing, registry
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.benchmarks import resolve
from bertbench.common.cli.main import main
from bertbench.common.errors import BadInput, Unsupported

ROOT = Path(__file__).parents[3]
HANGS = "import time\ntime.sleep(1000)"


@pytest.fixture
def only_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is built in but cpu_ref; the folder is on the path."""
    monkeypatch.setattr(registry, "BUILT_IN", {"cpu_ref": backends.BUILT_IN["cpu_ref"]})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_order_in_which_auto_tries() -> None:
    order = "cuda rocm corex gcu npu musa mlu hpu xpu mps cpu_ref"
    assert " ".join(backends.BUILT_IN) == order


def test_importing_the_registry_is_cheap() -> None:
    done = python("import sys, bertbench.backends.probing; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_no_process_of_ours_lets_torch_import_vendor_packages() -> None:
    code = "import os, bertbench; print(os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'])"
    assert python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="1").stdout == "0\n"


def test_unknown_name_lists_what_there_is(only_others: Path) -> None:
    offer(only_others, "abacus", None)
    with pytest.raises(Unsupported, match="unknown backend 'quantum'; known: cpu_ref, abacus"):
        backends.load("quantum")
    with pytest.raises(
        Unsupported, match=r"unknown backend 'cpuref'; did you mean cpu_ref\? known"
    ):
        backends.load("cpuref")
    with pytest.raises(Unsupported, match="unknown backend 'tpu'"):
        backends.resolve("tpu")
    with pytest.raises(Unsupported, match="unknown backend 'tpu'"):
        probing.examine(["tpu"])


def test_cpu_is_another_name_of_the_reference_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert backends.load("cpu") is backends.resolve("cpu") is backends.load("cpu_ref")
    settings = resolve("mini", ["--backend", "cpu"])
    assert settings.run.backend == "cpu_ref" and settings.origins["backend"] == "flag"
    assert main(["doctor", "cpu", "--json"]) == 0
    assert [b["name"] for b in json.loads(capsys.readouterr().out)["backends"]] == ["cpu_ref"]
    with pytest.raises(SystemExit):
        main(["run", "mini", "--help"])
    assert "(or cpu)" in " ".join(capsys.readouterr().out.replace("\u2502", " ").split())


def test_a_target_may_be_a_function(only_others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (only_others / "generations.py").write_text(
        "from bertbench.backends.cpu_ref.backend import CpuRef\ndef choose(): return CpuRef\n"
    )
    monkeypatch.setitem(backends.BUILT_IN, "cpu_ref", "generations:choose")
    assert backends.load("cpu_ref") is CpuRef


def test_names_that_are_taken_are_refused(only_others: Path) -> None:
    offer(only_others, "abacus", None)
    entry_point(only_others, "other-abacus", "bertbench.backends", "abacus", "nowhere:Adapter")
    entry_point(only_others, "my-cpu", "bertbench.backends", "cpu_ref", "nowhere:Adapter")
    entry_point(only_others, "my-auto", "bertbench.backends", "auto", "nowhere:Adapter")
    assert backends.names() == ["cpu_ref", "abacus"]
    assert backends.load("cpu_ref") is CpuRef
    refused = sorted(backends.refused())
    assert [line.split(":")[0] for line in refused[1:]] == [
        "backend 'auto' of package my-auto is refused",
        "backend 'cpu_ref' of package my-cpu is refused",
    ]
    assert refused[0].startswith("backend 'abacus' of package ")
    assert "provides that name already" in refused[0]


def test_an_adapter_has_the_name_of_its_entry_point(only_others: Path) -> None:
    offer(only_others, "abacus", "", THIN.replace("{name!r}", "'quipu'"))
    with pytest.raises(Unsupported, match=r"'abacus' of package bertbench-abacus.*'quipu'"):
        backends.load("abacus")
    assert "a backend named 'quipu'" in probing.examine(["abacus"])["abacus"]["reason"]


def test_auto_is_the_first_that_works_and_waits_for_no_other(only_others: Path) -> None:
    offer(only_others, "a_missing", None)
    offer(only_others, "b_works", "", FULL)
    offer(only_others, "c_hangs", HANGS)
    others = backends.names()[1:]
    assert others == ["a_missing", "b_works", "c_hangs"]
    answers = probing.examine(others, first=True, timeout_s=600)
    assert [(n, a["ok"]) for n, a in answers.items()] == [("a_missing", False), ("b_works", True)]
    assert backends.resolve("auto", timeout_s=600).name == "b_works"


def test_auto_never_means_the_cpu(only_others: Path) -> None:
    offer(only_others, "abacus", None)
    with pytest.raises(Unsupported, match=r"--backend cpu_ref\n  abacus: .*torch_abacus"):
        backends.resolve("auto")


def test_a_hanging_package_cannot_hang_a_run(
    only_others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(only_others, "abacus", HANGS)
    for name in ("auto", "abacus"):
        with pytest.raises(Unsupported, match=r"timed out after 0\.5 s"):
            backends.resolve(name, timeout_s=0.5)
    monkeypatch.setenv("BERTBENCH_PROBE_TIMEOUT", "1")
    with pytest.raises(Unsupported, match="timed out after 1 s"):
        backends.resolve("abacus")
    monkeypatch.setenv("BERTBENCH_PROBE_TIMEOUT", "soon")
    with pytest.raises(BadInput, match="BERTBENCH_PROBE_TIMEOUT=soon"):
        backends.resolve("abacus")


def test_one_process_of_a_machine_asks(only_others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(only_others, "abacus", "")
    asked: list[list[str]] = []

    def examine(names: list[str], **_: object) -> dict[str, dict[str, object]]:
        asked.append(names)
        return {name: {"ok": True} for name in names}

    monkeypatch.setattr(probing, "examine", examine)
    for rank in "0123":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert backends.resolve("abacus").name == "abacus"
        assert backends.resolve("cpu_ref") is CpuRef
    assert asked == [["abacus"]]


def test_simulated_packages_come_first_on_the_path() -> None:
    code = "from bertbench import backends; import sys; print(sys.path[0])"
    done = python(code, BERTBENCH_SIMULATE="gcu")
    assert done.stdout.strip() == str(ROOT / "backends" / "simulated" / "standins"), done.stderr


@pytest.mark.parametrize(
    ("value", "installed", "message"),
    [("abacus", None, "choose from gcu"), ("gcu", "torch_gcu", "the real torch_gcu")],
)
def test_simulation_that_is_refused(
    value: str, installed: str | None, message: str, tmp_path: Path
) -> None:
    if installed:
        (tmp_path / f"{installed}.py").touch()
    done = python(
        "from bertbench import backends", BERTBENCH_SIMULATE=value, PYTHONPATH=str(tmp_path)
    )
    assert done.returncode
    assert message in done.stderr
