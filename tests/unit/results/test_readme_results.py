# SPDX-License-Identifier: Apache-2.0
"""The pages' tables are of the committed records: a first run of one's own changes none."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from tests.unit.results.constructed import make_run

ROOT = Path(__file__).parents[3]


def test_a_local_record_is_not_read(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme_results.py")
    assert spec is not None and spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    results = tmp_path / "results"
    known = make_run(results, {"sequences_per_second": 11.0}, preset="known")

    def git(*words: str) -> None:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run([*command, *words], check=True, capture_output=True)

    git("init")
    git("add", "results")
    before = readme.of_records(results)
    assert "known" in before
    make_run(results, {"sequences_per_second": 12.0}, preset="mine")
    assert readme.of_records(results) == before
    git("commit", "-m", "results")
    assert readme.committed(results) == [known / "manifest.json"]
    shutil.rmtree(tmp_path / ".git")
    assert "mine" in readme.of_records(results)  # an archive of the source has no git
