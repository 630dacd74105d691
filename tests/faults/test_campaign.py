# SPDX-License-Identifier: Apache-2.0
"""The campaign for a minute; by hand it does thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import shim

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["tests/faults/campaign.py", "tests/hostile/campaign.py"])
def test_faults_and_hostile_files_are_survived(script: str) -> None:
    """Nothing is lost, no number wrong, nothing hangs; failures print how to repeat them."""
    try:
        shim.build()
    except RuntimeError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, script, "--seed", "1", "--n", "20", "--seconds", "40"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
