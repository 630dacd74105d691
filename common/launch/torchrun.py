# SPDX-License-Identifier: Apache-2.0
"""torchrun that keeps the processes' exit code: ``python -m ...launch.torchrun FLAGS``.

bertbench has an exit code for a missed target and one for an interruption (cli/main.py). torchrun
turns both into a traceback and a 1.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SHUTDOWN_S = 600
"""Seconds that the processes have to stop after Ctrl-C or SIGTERM. After a failure of one, the
others have torchrun's default of 30."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait. Return 0, the first failure's exit code, or 130 if stopped.

    Ctrl-C and SIGTERM are passed on; the processes finish a step and save a checkpoint, which may
    take longer than torchrun's 30 seconds. SIGHUP is ignored where nohup says so. The command line
    alone counts: torchrun would also read PET_NNODES and others, and wait for absent nodes.
    """
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_S))
    try:
        run.main(list(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # The exit code of a process killed by a signal is the signal's number, negated.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
