"""glibc's allocator, told to keep freed memory, or to give it back.

Conventions
-----------
* A network on a CPU frees and takes the same large blocks at every call. By default glibc gives them back to
  the kernel and meets a page fault for each page when it takes them again, which costs up to 1.65x of a call
  (``benchmarks/network_call.py``). Peak memory stays what it was; it is only not given back.
* Where chunks come and go, glibc keeps more of them with each of the first shards, and peak memory rises
  (``benchmarks/memory.py``). Workers without a network therefore give large blocks back.
"""

from __future__ import annotations

import ctypes
import os

# numbers of <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
TOP_PAD = 64 * 2**20
"""Bytes taken from the kernel beyond each request for more."""
LARGE = 2**16
"""Bytes from which a block is given back as soon as it is freed, where freed memory is given back: fewer than
those of a chunk, since chunks are what comes and goes."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory, unless the environment sets ``MALLOC_*`` itself.

    Returns
    -------
    bool
        Whether it took the settings; False with another C library.
    """
    return _tell({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: TOP_PAD})


def return_freed_memory() -> bool:
    """Tell glibc to give large blocks back once they are freed, unless the environment sets ``MALLOC_*``.

    Returns
    -------
    bool
        Whether it took the setting; False with another C library.
    """
    return _tell({M_MMAP_THRESHOLD: LARGE})


def _tell(settings: dict[int, int]) -> bool:
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())
