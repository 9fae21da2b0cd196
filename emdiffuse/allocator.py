"""glibc's allocator, told to keep freed memory.

Conventions
-----------
* A network on a CPU frees and takes the same large blocks at every call. By default glibc gives them back to
  the kernel and meets a page fault for each page when it takes them again, which costs up to 1.65x of a call
  (``benchmarks/network_call.py``). Peak memory stays what it was; it is only not given back.
"""

from __future__ import annotations

import ctypes
import os

# numbers of <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20
"""Bytes taken from the kernel beyond each request for more."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory, unless the environment sets ``MALLOC_*`` itself.

    Returns
    -------
    bool
        Whether it took the settings; False with another C library.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
