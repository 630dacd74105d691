# SPDX-License-Identifier: Apache-2.0
"""The errors that people see: each message says what is wrong, where, and how to fix it."""

from __future__ import annotations


class BertbenchError(Exception):
    """Base of every error caused by input or environment; the CLI prints it without a traceback."""


class Unsupported(BertbenchError):
    """The request cannot be honoured as asked. Nothing is ever downgraded silently."""


class BadInput(BertbenchError):
    """A file or value that a user handed in is wrong: the message names it and the fix."""


class DivergedError(BertbenchError):
    """Training produced a loss or gradient that is not finite."""
