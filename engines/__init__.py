# SPDX-License-Identifier: Apache-2.0
"""Inference engines: names to classes (base.py), each imported only when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from bertbench.common.config.parser import did_you_mean
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.engines.base import Engine

ENGINES = {
    "onnxruntime": "bertbench.engines.onnxruntime:OnnxRuntime",
    "openvino": "bertbench.engines.openvino:OpenVino",
    "torch": "bertbench.engines.torch:Torch",
}
"""Name -> module:class."""


def load(name: str) -> type[Engine]:
    """Return the engine's class; raises BadInput with the known names."""
    if name not in ENGINES:
        hint = did_you_mean(name, ENGINES)
        raise BadInput(f"unknown engine {name!r}{hint}; known: {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), attribute)
    return found
