# SPDX-License-Identifier: Apache-2.0
"""Triton's compiler makes code for an H100 without one: every kernel, without spilled registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")


def test_every_kernel_compiles_for_sm_90_without_spills() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.triton_code"],
        capture_output=True, text=True, env=environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 12
    for found in kernels:
        assert found["STACK"] == found["LOCAL"] == 0, found
        assert 0 < found["REG"] <= 255, found
