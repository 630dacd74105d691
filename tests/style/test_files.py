# SPDX-License-Identifier: Apache-2.0
"""Every file: length, licence line, characters, nothing that belongs to one machine."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = {".py", ".sh", ".c", ".cpp", ".h"}
PRODUCT = {"backends", "benchmarks", "bertbench", "common", "engines", "scripts", "tools"}
MAX_LINES = 400
SPDX = "SPDX-License-Identifier: Apache-2.0"

# Spelled in pieces, so that this file may be searched too.
PLACES = re.compile(
    r"(?<![\w.$}/])/(?:" + "|".join(("wo" + "rk", "tm" + "p", "ro" + "ot", "ho" + "me")) + r")/"
)
HOSTS = re.compile("|".join(("py" + r"pi\.org", "python" + "hosted", r"download\.py" + "torch")))
UNFINISHED = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")


def is_code(path: Path) -> bool:
    return path.suffix in CODE or path.name == "run"


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def search(files: list[Path], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:90]}"
        for path in files
        if path.suffix not in {".lock", ".png", ".safetensors"} and path.name != "LICENSE"
        for number, line in enumerate(text(path).splitlines(), 1)
        if pattern.search(line)
    ]


def test_product_files_are_short(files: list[Path]) -> None:
    lengths = {
        str(path): text(path).count("\n")
        for path in files
        if is_code(path) and (path.parts[0] in PRODUCT or len(path.parts) == 1)
    }
    assert not {path: n for path, n in lengths.items() if n > MAX_LINES}


def test_licence_line(files: list[Path]) -> None:
    """First line, or second after a shebang."""
    missing = []
    for path in filter(is_code, files):
        lines = text(path).splitlines()[:2] + [""]
        if SPDX not in lines[1 if lines[0].startswith("#!") else 0]:
            missing.append(str(path))
    assert not missing


def test_code_is_ascii(files: list[Path]) -> None:
    assert not [str(path) for path in files if is_code(path) and not text(path).isascii()]


def test_no_machine_paths(files: list[Path]) -> None:
    assert not search(files, PLACES)
    assert PLACES.search("open('/wo" + "rk/main')")


def test_no_package_index_hosts(files: list[Path]) -> None:
    assert not search(files, HOSTS)
    for lock in ("core.lock", "dev.lock", "triton.lock"):
        content = text(Path("requirements") / lock)
        assert "://" not in content
        assert "index-url" not in content


def test_nothing_unfinished(files: list[Path]) -> None:
    assert not search([path for path in files if is_code(path)], UNFINISHED)


def test_licence_is_the_whole_one() -> None:
    words = text(Path("LICENSE")).split()
    assert words[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in " ".join(words)
