# SPDX-License-Identifier: Apache-2.0
"""One rank of the scaling measurement; started by torchrun from sections.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    tools = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tools.parent), str(tools)]
    from bench.sections import rank_main
    from bertbench.backends.cpu_ref.allocator import keep_freed_memory

    keep_freed_memory()
    rank_main(os.environ["BENCH_RANK_SHAPE"])
