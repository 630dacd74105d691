# SPDX-License-Identifier: Apache-2.0
"""Wording of pages, docstrings, comments and messages; shapes and errors in docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = {"backends", "benchmarks", "bertbench", "common", "engines", "scripts", "tools"}
PACKAGE = {"backends", "benchmarks", "bertbench", "common", "engines"}
RECORDED = {Path("results/README.md"), Path("results/reference/README.md")}
"""The pages of results/ that people write; the others belong to records."""

VERBS = "is|was|are|were|it|they|we|you|has|have|will|would|can|may|must|does|did"
LIMITS = {
    r"\b(tell|tells|told)\b": 0.35,
    rf"\bwhat ({VERBS})\b": 0.61,
    r"\bof (theirs|ours|yours|(its|their|our|your) own)\b": 0.20,
    r"\bnothing (is|was|are|were|has|can)\b": 0.15,
    r"\b(is|are|was|were) no\b": 0.20,
    r"\b(stands|anew|aloud)\b": 0.12,
}
"""Habit -> occurrences allowed in 1,000 words: a fifth of the count at commit c52bbaa."""

ARRAY = re.compile(r"\b(Tensor|ndarray|\w*Array)\b")
SHAPE = re.compile(r"\[[A-Za-z0-9_*/ ,.+()-]*\]")
MIN_SHAPES, MIN_ERRORS = 0.90, 0.95
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef
Lines = list[tuple[int, str]]


def of_python(source: str) -> Lines:
    """Return number and text of each line of docstrings, messages and comments."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            last = node.end_lineno or node.lineno
            for i, line in enumerate(node.value.splitlines()):
                found.append((min(node.lineno + i, last), line))
    for number, line in enumerate(source.splitlines(), 1):
        found += [(number, text) for text in re.findall(r"#\s(.*)", line)]
    return found


def of_page(source: str) -> Lines:
    """Return number and text of each line outside code blocks."""
    blank = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), source, flags=re.S)
    return list(enumerate(blank.splitlines(), 1))


def texts(files: Iterable[Path]) -> dict[Path, Lines]:
    """Return path -> lines of all that people read: pages, Python and shell files."""
    found = {}
    for path in files:
        first, source = path.parts[0], ROOT / path
        page = path.suffix == ".md" and first != "tests"
        if page and (first != "results" or path in RECORDED):
            found[path] = of_page(source.read_text(encoding="utf-8"))
        elif path.suffix == ".py" and first in PRODUCT:
            found[path] = of_python(source.read_text(encoding="utf-8"))
        elif path.suffix == ".sh" and (first in PRODUCT or len(path.parts) == 1):
            found[path] = list(enumerate(source.read_text(encoding="utf-8").splitlines(), 1))
    return found


def above_limit(found: dict[Path, Lines]) -> list[str]:
    """Return a report with the places of each habit that occurs more often than its limit."""
    lines = [(path, n, line) for path, content in found.items() for n, line in content]
    words = sum(len(re.findall(r"[A-Za-z']+", line)) for _, _, line in lines)
    report = []
    for habit, limit in LIMITS.items():
        places = [
            f"  {path}:{n}: {line.strip()[:90]}"
            for path, n, line in lines
            for _ in re.finditer(habit, line, re.I)
        ]
        if len(places) > limit * words / 1000:
            allowed = f"{limit * words / 1000:.0f} allowed in {words:,} words"
            report += [f"{habit}: {len(places)}, {allowed}", *places]
    return report


def test_habits_are_rare(files: list[Path]) -> None:
    report = above_limit(texts(files))
    assert not report, "\n" + "\n".join(report)


def test_habits_are_found_with_their_lines() -> None:
    source = '"""Doc.\n\nIt is told aloud.\n"""\nx = "what it was"  # nothing is here\ny = "told"\n'
    found = above_limit({Path("a.py"): of_python(source)})
    assert [line.split(": ")[0].strip() for line in found if line.startswith("  ")] == [
        "a.py:3", "a.py:5", "a.py:5", "a.py:3",
    ]  # fmt: skip
    page = "One\n```\ntold\n```\nThere is no word of ours.\n"
    assert [n for n, line in of_page(page) if "told" in line or "ours" in line] == [5]
    plain = {Path("a.md"): of_page("word " * 10_000 + "told")}
    assert not above_limit(plain)


# -- docstrings and sizes ----------------------------------------------------------------------


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """Yield class (or an empty name) and node of each function that is in no other function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield inside, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, node.name)
        else:
            yield from functions(node, inside)


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below ``node`` that belong to no inner function or class."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield child
            yield from own_nodes(child)


def raised(function: Function) -> set[str]:
    """Return the names of the classes in the function's ``raise Name(...)`` statements."""
    return {
        name
        for node in own_nodes(function)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if (name := ast.unparse(node.exc.func).split(".")[-1])[0].isupper()
    }


def takes_arrays(function: Function) -> bool:
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return any(a.annotation and ARRAY.search(ast.unparse(a.annotation)) for a in arguments)


def undocumented(sources: dict[Path, str]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the public functions without a shape or an error, and how many need each.

    A method without a docstring has that of the method it overrides, as in ``inspect.getdoc``;
    ``forward`` and ``backward``, which torch calls, have that of their class.
    """
    trees = {path: ast.parse(source) for path, source in sources.items()}
    classes = [n for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef)]
    bases = {c.name: [ast.unparse(b).split(".")[-1] for b in c.bases] for c in classes}
    docs = {
        (owner, f.name): ast.get_docstring(f) for t in trees.values() for owner, f in functions(t)
    }

    for c in classes:
        for name in ("forward", "backward"):
            docs[c.name, name] = docs.get((c.name, name)) or ast.get_docstring(c)

    def inherited(owner: str, name: str) -> str:
        if doc := docs.get((owner, name)):
            return doc
        return next(filter(None, (inherited(base, name) for base in bases.get(owner, ()))), "")

    lacking: dict[str, list[str]] = {"shape": [], "error": []}
    needed = {"shape": 0, "error": 0}
    for path, tree in trees.items():
        for owner, function in functions(tree):
            if function.name.startswith("_"):
                continue
            doc = ast.get_docstring(function) or (inherited(owner, function.name) if owner else "")
            place = f"  {path}:{function.lineno}: {function.name}"
            if takes_arrays(function):
                needed["shape"] += 1
                lacking["shape"] += [] if SHAPE.search(doc) else [place]
            if names := raised(function):
                needed["error"] += 1
                lacking["error"] += [] if any(n in doc for n in names) else [place]
    return lacking, needed


def package(files: Iterable[Path]) -> dict[Path, str]:
    """Return path -> source of the package's modules."""
    found = [path for path in files if path.suffix == ".py" and path.parts[0] in PACKAGE]
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in found}


def test_docstrings_state_shapes_and_errors(files: list[Path]) -> None:
    lacking, needed = undocumented(package(files))
    report = [
        f"{len(lacking[kind])} of {needed[kind]} without the {kind}\n" + "\n".join(lacking[kind])
        for kind, share in (("shape", MIN_SHAPES), ("error", MIN_ERRORS))
        if needed[kind] - len(lacking[kind]) < share * needed[kind]
    ]
    assert not report, "\n" + "\n".join(report)


def test_missing_shapes_and_errors_are_found() -> None:
    source = (
        "class Base:\n    def f(self, x: Tensor):\n        'Return x [B, S].'\n"
        "class Child(Base):\n    'Map [B].'\n    def f(self, x: Tensor):\n        return x\n"
        "    def forward(self, x: Tensor):\n        return x\n"
        "def g(x: FloatArray, log: TensorBoard):\n    'No shape.'\n    raise errors.BadInput('x')\n"
        "def h(x):\n    'Inner raise only, and one passed on.'\n    raise x\n"
        "    def inner():\n        raise BadInput('x')\n"
        "def i():\n    'Raise BadInput.'\n    raise BadInput('x')\n"
        "def _private(x: Tensor):\n    raise BadInput('x')\n"
    )
    lacking, needed = undocumented({Path("a.py"): source})
    assert lacking == {"shape": ["  a.py:10: g"], "error": ["  a.py:10: g"]}
    assert needed == {"shape": 4, "error": 2}


def test_functions_are_short(files: list[Path]) -> None:
    """At most 60 lines; ruff (C901 in pyproject.toml) limits the complexity."""
    long = [
        f"{path}:{node.lineno}: {node.name} has {length} lines"
        for path in files
        if path.suffix == ".py" and path.parts[0] in PRODUCT
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, Function)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n" + "\n".join(long)
    ruff = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"C901"' in ruff
    assert "\n[tool.ruff.lint.mccabe]\nmax-complexity = 15\n" in ruff
