"""The allocator's setting: page faults of repeated large allocations, and the environment's precedence."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

PROGRAM = """
import resource, torch
from ds4sci.machine.allocator import keep_freed_memory
kept = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(16 << 20)
before = faults()
for _ in range(4):
    torch.ones(16 << 20)
print(kept, faults() - before)
"""
PAGES = 4 * (64 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_page_faults_of_repeated_allocations(variables: dict[str, str]) -> None:
    """None once memory is kept; every page where the environment has set the allocator, which stays as it is."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | variables, capture_output=True, text=True, check=True, timeout=120
    )
    kept, faults = done.stdout.split()
    assert kept == str(not variables)
    assert (int(faults) < PAGES // 100) == (not variables)
