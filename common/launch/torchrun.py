# SPDX-License-Identifier: Apache-2.0
"""torchrun whose exit code is the processes' own: ``python -m ...launch.torchrun FLAGS``.

A run that missed its target, or was interrupted, ends with an exit code of its own (cli/main.py).
torchrun turns each into a traceback and a 1; this does not. Everything else is torchrun's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SHUTDOWN_S = 600
"""Seconds that processes which were told to stop have for it. After the failure of one of them, the
others still have torchrun's own 30."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait: 0, the first failure's exit code, or 130 when told to stop.

    Ctrl-C and SIGTERM are passed on to the processes, which save and end: torchrun's 30 seconds
    until it kills them may not do for a step and a large checkpoint.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    try:
        run.main(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A process that a signal killed has the signal's number, negated.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
