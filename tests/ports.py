# SPDX-License-Identifier: Apache-2.0
"""A port on which the processes of a test meet."""

import contextlib
import random
import socket


def free_port() -> int:
    """One below those that the system hands out, so that no other program is given it meanwhile."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("100 ports between 20000 and 30000 are taken")
