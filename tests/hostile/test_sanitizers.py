# SPDX-License-Identifier: Apache-2.0
"""No argument that the checks let through makes C touch memory that is not the argument's.

``sanitized.py`` builds every C file with AddressSanitizer and UBSan; by hand it tries thousands.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sanitized

SCRIPT = Path(sanitized.__file__)


@pytest.fixture(scope="module", autouse=True)
def sanitizers() -> None:
    why = sanitized.missing()
    if why is not None:
        pytest.skip(f"C files are not fuzzed: {why}")


def test_random_and_wrong_calls_of_every_entry_touch_only_their_arguments() -> None:
    """Also fails where a call that is wrong on purpose is not caught: then it proves nothing."""
    command = [sys.executable, str(SCRIPT), "--seed", "1", "--n", "330"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = [line for line in done.stdout.splitlines() if line.startswith(sys.executable)][-1:]
    report += [line for line in done.stderr.splitlines() if "rror" in line][:3]
    assert done.returncode == 0, "\n".join(report) or done.stdout[-500:]
    for name in ("attention", "offset_attention", "lamb", "masking", "wordpiece", "scatter_add"):
        assert f"{name} valid done" in done.stdout
        assert f"{name} wrong refused" in done.stdout


def test_a_wrong_call_that_nothing_catches_is_noticed() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import os, sanitized\n"
        "calls = {'harmless': lambda: None, 'caught': lambda: os.abort()}\n"
        "sanitized._canaries = lambda: calls; print(sanitized.prove())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['harmless']", done.stderr[-500:]
