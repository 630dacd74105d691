# SPDX-License-Identifier: Apache-2.0
"""Keeps freed memory in the process, so that activations reuse its pages.

glibc returns large blocks to the kernel at once, and each training step then pays for its page
faults again (6 to 25 % of a step on two cores). Other C libraries stay unchanged.
"""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""From glibc's malloc.h."""


@functools.cache
def keep_freed_memory() -> str:
    """Configure glibc; return the setting in effect, for the record."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # other C libraries have another mallopt, or none
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return "system default"
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    if all(mallopt(name, value) for name, value in settings):
        return "glibc, freed memory kept"
    return "system default"
