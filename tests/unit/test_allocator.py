"""The allocator: freed memory is kept, to avoid page faults, or returned."""

import subprocess
import sys

CHILD = """
import resource, sys
import numpy as np
from emdiffuse.runtime.allocator import keep_freed_memory, return_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
if sys.argv[1] == "return":
    assert return_freed_memory()
size = int(sys.argv[2])
np.ones(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode, size):
    command = [sys.executable, "-c", CHILD, mode, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept():
    assert faults("keep", 2**24) < 100 < faults("stock", 2**24)


def test_freed_memory_is_given_back():
    """Blocks of 2 MiB (512 pages), ten times; glibc keeps them by default once one was freed."""
    assert faults("stock", 2**18) < 2000 < 5000 < faults("return", 2**18)


def test_the_environment_has_precedence(monkeypatch):
    from emdiffuse.runtime.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert not keep_freed_memory()
