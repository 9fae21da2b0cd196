"""The allocator: freed memory is kept, so that taking it again meets no page faults."""

import subprocess
import sys

CHILD = """
import resource, sys
import numpy as np
from emdiffuse.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", CHILD, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept():
    assert faults("keep") < 100 < faults("stock")


def test_the_environment_has_precedence(monkeypatch):
    from emdiffuse.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert not keep_freed_memory()
