"""Large tensors go back to the system: told to the C library once, and only for rows that are worth it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from ds4sci.nn import heap

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096

assert heap.give_back_large_tensors()
before = resident()
kept = []
for _ in range(20):  # a large one freed between small ones that stay
    large = torch.ones(6 << 20, dtype=torch.uint8)
    kept.append(torch.ones(1 << 16, dtype=torch.uint8))
    del large
print((resident() - before) / (1 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap is told")
def test_what_is_freed_is_the_systems_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 6
