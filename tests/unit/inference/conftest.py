# SPDX-License-Identifier: Apache-2.0
"""One exported model for all tests of a process: the export takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.inference.tiny_export import tiny_model, write_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model in float32."""
    pytest.importorskip("onnxscript")
    return write_export(tmp_path_factory.mktemp("export"), tiny_model())
