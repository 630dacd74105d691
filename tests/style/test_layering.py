# SPDX-License-Identifier: Apache-2.0
"""Who may know whom: benchmarks know a backend, never a device; common/ knows neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = {"common/calibrate.py", "common/cli.py", "common/doctor.py", "common/runner.py"}
"""The only files of common/ that bring backends and benchmarks together."""

VENDOR_PACKAGES = {
    "apex", "deepspeed", "flash_attn", "habana_frameworks", "intel_extension_for_pytorch",
    "pyefml", "pynvml", "torch_gcu", "torch_mlu", "torch_musa", "torch_npu", "torch_sdaa",
    "torch_xla", "torch_xmlir", "transformer_engine", "triton", "amdsmi", "pyhlml",
}  # fmt: skip
DEVICES = {
    "cuda", "gcu", "npu", "mlu", "musa", "xpu", "hpu", "sdaa", "mps", "xla", "hip",
    "nccl", "eccl", "hccl", "cncl", "mccl", "xccl",
}  # fmt: skip


def violations(source: str, rule: str) -> list[str]:
    """Lines of ``source`` that break ``rule``: torch.cuda, vendor, device or layer."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if rule == "torch.cuda":
            bad = (
                isinstance(node, ast.Attribute)
                and node.attr == "cuda"
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            ) or any(name.startswith("torch.cuda") for name in _imported(node))
        elif rule == "vendor":
            bad = any(name.split(".")[0] in VENDOR_PACKAGES for name in _imported(node))
        elif rule == "device":
            bad = (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.split(":")[0] in DEVICES
            )
        else:
            bad = any(name.split(".")[0] == rule for name in _imported(node))
            bad = bad and node not in set(_for_types_only(tree))
        if bad:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")  # type: ignore[attr-defined]
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def _for_types_only(tree: ast.AST) -> Iterator[ast.AST]:
    """What stands under ``if TYPE_CHECKING``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for inside in node.body:
                yield from ast.walk(inside)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("torch.cuda", "x = torch.cuda.is_available()"),
        ("torch.cuda", "import torch.cuda.nvtx"),
        ("torch.cuda", "from torch import cuda"),
        ("vendor", "def f():\n    import torch_gcu"),
        ("vendor", "from apex.optimizers import FusedLAMB"),
        ("device", "t.to('cuda:0')"),
        ("device", "backend = 'nccl'"),
        ("backends", "from backends.base import Backend"),
        ("benchmarks", "import benchmarks.bert_pretraining"),
    ],
)
def test_the_rules_catch(rule: str, source: str) -> None:
    assert violations(source, rule)


def test_the_rules_let_types_pass() -> None:
    source = "if TYPE_CHECKING:\n    from backends.base import Backend\n"
    assert not violations(source, "backends")


def _check(files: list[Path], rule: str, folders: set[str], but: tuple[str, ...] = ()) -> None:
    found = [
        f"{path}: {line}"
        for path in files
        if path.suffix == ".py" and path.parts[0] in folders and not str(path).startswith(but)
        for line in violations((ROOT / path).read_text(), rule)
    ]
    assert not found, "\n".join(found)


def test_torch_cuda_only_in_its_backend(files: list[Path]) -> None:
    folders = {"backends", "benchmarks", "common", "scripts", "tools", "tests"}
    _check(files, "torch.cuda", folders, but=("backends/cuda/",))


@pytest.mark.parametrize("rule", ["vendor", "device"])
def test_no_vendor_in_benchmarks_and_common(files: list[Path], rule: str) -> None:
    _check(files, rule, {"benchmarks", "common"})


def test_common_knows_neither_backends_nor_benchmarks(files: list[Path]) -> None:
    for rule in ("backends", "benchmarks"):
        _check(files, rule, {"common"}, but=tuple(ENTRIES))


def test_backends_know_no_benchmark(files: list[Path]) -> None:
    _check(files, "benchmarks", {"backends"})
