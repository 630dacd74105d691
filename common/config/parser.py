# SPDX-License-Identifier: Apache-2.0
"""How every verb parses its words and refuses."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from bertbench.common.errors import BadInput


class Parser(argparse.ArgumentParser):
    """The parser of one verb, with --json; a wrong word is a BadInput, as everywhere."""

    def __init__(self, verb: str, description: str | None, **options: Any) -> None:
        super().__init__(prog=f"bertbench {verb}", description=description, **options)
        self.add_argument("--json", action="store_true", help="for machines")

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().strip()}")
