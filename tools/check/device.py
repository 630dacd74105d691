# SPDX-License-Identifier: Apache-2.0
"""The input of every section: the backend to check, the size of the work, and the folder."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

from bertbench import backends
from bertbench.backends.base import Backend
from check.figure import NotAvailable

TINY_PRETRAINING = """
    --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 256
    --vocab_size 512 --max_seq_length 64 --max_position_embeddings 64
    --max_predictions_per_seq 10
""".split()
TINY_SQUAD = """
    --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 128
    --max_seq_length 64 --max_position_embeddings 64 --max_query_length 16 --doc_stride 16
""".split()


@dataclass(frozen=True, kw_only=True)
class Check:
    """One call of the tool."""

    backend: str
    """A backend that runs here; each section opens it in its own process."""
    tiny: bool
    """Small shapes that exercise the code; the figures are not measurements."""
    folder: Path
    """Everything is written below it."""

    @property
    def results(self) -> Path:
        """The root of the records, as `bertbench run` lays them out."""
        return self.folder / "results"

    def size(self, full: int, tiny: int) -> int:
        """Return ``full``, or ``tiny`` with --tiny."""
        return tiny if self.tiny else full

    def open(self) -> Backend:
        """Open the first device of the backend."""
        return backends.load(self.backend)(0)


def choose_precision(check: Check, backend: Backend, wanted: str) -> str:
    """Return ``wanted`` if the device supports it; with --tiny another may replace bf16.

    Raises NotAvailable with the backend's reason. The caller names the precision that really ran.
    """
    have = backend.capabilities.precisions
    if wanted in have:
        return wanted
    if check.tiny and wanted == "bf16":
        # fp16 needs loss scaling, which not every section does.
        return next((p for p in have if p != "fp16"), have[0])
    why = backend.capabilities.notes.get(wanted, "the adapter gives no reason")
    raise NotAvailable(f"{backend.name} does not support {wanted}: {why}")


def free_memory(backend: Backend) -> None:
    """Return the device memory of dead tensors, and begin a new window of the peak."""
    gc.collect()
    empty = getattr(backend.module, "empty_cache", None)
    if empty is not None:
        empty()
    backend.reset_peak_memory()
