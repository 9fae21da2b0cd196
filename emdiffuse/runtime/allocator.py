"""Configure glibc's allocator to keep freed memory, or to return it.

Conventions
-----------
* A network on a CPU frees and allocates the same large blocks at every call. By default glibc returns them to
  the kernel, and each page causes a page fault when allocated again, which makes calls up to 1.65x slower
  (``benchmarks/network_call.py``). Keeping freed memory does not raise its peak.
* When chunks are allocated and freed, glibc keeps more of them with each of the first shards, and peak memory
  rises (``benchmarks/memory.py``). Workers without a network therefore return large blocks.
"""

from __future__ import annotations

import ctypes
import os

# constants of <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
TOP_PAD = 64 * 2**20
"""Bytes allocated from the kernel beyond each request."""
LARGE = 2**16
"""Size in bytes from which a freed block is returned at once, if freed memory is returned: less than
that of a chunk, since chunks are allocated and freed."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory, unless the environment sets ``MALLOC_*`` itself.

    Returns
    -------
    bool
        Whether the settings took effect; False with another C library.
    """
    return _tell({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: TOP_PAD})


def return_freed_memory() -> bool:
    """Tell glibc to return large blocks when freed, unless the environment sets ``MALLOC_*`` itself.

    Returns
    -------
    bool
        Whether the setting took effect; False with another C library.
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
