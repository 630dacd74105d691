# SPDX-License-Identifier: Apache-2.0
"""Errors for users: each message has the problem, its place and the fix."""

from __future__ import annotations

import sys

PROCESS_LOST = 3
"""Exit code of a run one of whose processes was killed, stopped or cut off."""


class BertbenchError(Exception):
    """Base of every error caused by input or environment; the CLI prints it without a traceback."""

    exit_code = 2


class Unsupported(BertbenchError):
    """The request cannot be honoured. bertbench never downgrades one silently."""


class BadInput(BertbenchError):
    """A user's file or value is wrong: the message names it and the fix."""


class DivergedError(BertbenchError):
    """Training produced a non-finite loss or gradient."""


def install(extra: str) -> str:
    """Return the command that installs an extra of bertbench for the Python that runs."""
    return f"{sys.executable} -m pip install 'bertbench[{extra}]'"


def placed(place: str, error: BertbenchError) -> BertbenchError:
    """Return the error with the file or value that it is about before its text."""
    kind = Unsupported if isinstance(error, Unsupported) else BadInput
    return kind(f"{place}: {error}")


def host_memory_ran_out(error: BaseException) -> bool:
    """Return whether it means that the host's memory ran out: torch has no type for this."""
    texts = ("DefaultCPUAllocator", "std::bad_alloc")
    inner = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return inner or isinstance(error, MemoryError)
