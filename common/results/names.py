# SPDX-License-Identifier: Apache-2.0
"""The name of a run's folder: ``<UTC>_<recipe>_<precision>_<commit>_<id>``.

It is for people. Programs read ``manifest.json``; only the order of names, which is that of time,
counts. Records from before have no recipe and precision in theirs.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime

_LONGEST_PART = 60
"""Characters of a part: a file system takes 255 for the whole name."""


def new_run_id(created: datetime, recipe: str, precision: str, commit: str | None) -> str:
    """Return a new name; the precision is the one in effect. Other letters become ``_``."""
    parts = (_part(text) for text in (recipe, precision))
    code = commit[:7] if commit else "nocommit"
    named = "_".join(part for part in parts if part)
    return f"{created:%Y%m%dT%H%M%SZ}_{named}_{code}_{secrets.token_hex(3)}"


def _part(text: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")[:_LONGEST_PART].strip("_")
