# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: an order of rooms, and no device or vendor outside backends/."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "common.errors", "common.files", "common.native", "common.config", "common.masks",
    "common.data", "common.model", "common.compress", "common.optim", "common.measure",
    "backends", "engines",
    "common.distributed", "common.training", "common.launch", "common.mlperf", "common.results",
    "common.prepare", "common.exchange", "common.report", "benchmarks", "common.choices",
    "common.run", "common.cli", "api", "__main__",
)  # fmt: skip
"""The rooms of the package, from the ground up: each imports only from rooms before it.

Imports for type checkers only (``if TYPE_CHECKING``) do not count: nothing runs through them.
"""

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
    """Lines of ``source`` that break ``rule``: torch.cuda, vendor or device."""
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
        else:
            bad = (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.split(":")[0] in DEVICES
            )
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
    ],
)
def test_the_rules_catch(rule: str, source: str) -> None:
    assert violations(source, rule)


def _check(files: list[Path], rule: str, folders: set[str], but: tuple[str, ...] = ()) -> None:
    found = [
        f"{path}: {line}"
        for path in files
        if path.suffix == ".py" and path.parts[0] in folders and not str(path).startswith(but)
        for line in violations((ROOT / path).read_text(), rule)
    ]
    assert not found, "\n".join(found)


def test_torch_cuda_only_in_its_backend(files: list[Path]) -> None:
    folders = {"backends", "benchmarks", "common", "engines", "scripts", "tools", "tests"}
    _check(files, "torch.cuda", folders, but=("backends/cuda/",))


@pytest.mark.parametrize("rule", ["vendor", "device"])
def test_no_vendor_in_benchmarks_and_common(files: list[Path], rule: str) -> None:
    _check(files, rule, {"benchmarks", "common", "engines"})


def room(module: str) -> str | None:
    """The room of a module of this package, None for others: common's rooms are its children."""
    parts = module.split(".")
    if parts[0] != "bertbench" or len(parts) == 1:
        return None
    return ".".join(parts[1:3] if parts[1] == "common" else parts[1:2])


def imports(source: str, known: Collection[str]) -> set[str]:
    """Those of the ``known`` modules that running ``source`` imports, now or later."""
    tree = ast.parse(source)
    typed = set(_for_types_only(tree))
    found = set()
    for node in (node for node in ast.walk(tree) if node not in typed):
        if isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & set(known) | ({str(node.module)} if whole - set(known) else set())
        else:
            found |= set(_imported(node))
    return found & set(known)


def product(files: list[Path]) -> dict[str, set[str]]:
    """Module -> the modules it imports, by file."""
    paths = {
        ".".join(("bertbench", *path.with_suffix("").parts)).removesuffix(".__init__"): path
        for path in files
        if path.suffix == ".py" and path.parts[0] in {"backends", "benchmarks", "common", "engines"}
    } | {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.suffix == ".py" and path.parts[0] == "bertbench"
    }
    return {
        name: imports((ROOT / path).read_text(), paths) - {name} for name, path in paths.items()
    }


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a room that is not before the importer's in ORDER."""
    return [
        f"{name} imports {other}"
        for name, seen in graph.items()
        for other in seen
        if (mine := room(name)) != (theirs := room(other))
        and mine is not None
        and theirs in ORDER
        and ORDER.index(theirs) > ORDER.index(mine)
    ]


def test_rooms_import_only_rooms_below(files: list[Path]) -> None:
    graph = product(files)
    assert {r for name in graph if (r := room(name))} - {"common"} <= set(ORDER)
    assert not upward(graph)
    assert upward({"bertbench.common.data.batch": {"bertbench.common.run"}})
    known = ["bertbench.common", "bertbench.common.run"]
    assert imports("if x:\n    from bertbench.common import run", known) == {known[1]}
    assert imports("from bertbench.common.run import run", known) == {known[1]}
    assert not imports("if TYPE_CHECKING:\n    from bertbench.common import run", known)


def test_no_module_imports_itself_around_a_corner(files: list[Path]) -> None:
    graph = product(files)
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_common_has_few_rooms() -> None:
    """At most 21 at its top level, and about five files of its own."""
    folder = ROOT / "common"
    rooms = [p for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"]
    files = [p for p in folder.iterdir() if p.suffix == ".py" and p.name != "__init__.py"]
    assert len(rooms) + len(files) <= 21
    assert len(files) <= 5


def test_only_the_package_is_imported(files: list[Path]) -> None:
    """``common`` or ``backends`` may be somebody else's packages: ours are bertbench's."""
    ours = {"common", "backends", "benchmarks", "engines"}
    loose = [
        f"{path}:{node.lineno}"
        for path in files
        if path.suffix == ".py"
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if {name.split(".")[0] for name in _imported(node)} & ours
    ]
    assert not loose
