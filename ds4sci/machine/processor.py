"""The processor of this machine: cores usable by this process, model name, instruction-set flags."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """CPU cores that this process may run on: its affinity mask where the system has one, else all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def model_name() -> str:
    """Model name of the processor, as ``/proc/cpuinfo`` gives it; else what Python's ``platform`` module reports."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_flags() -> set[str]:
    """Instruction-set flags as Linux names them (``avx2``, ``fma``, …); empty where there is no ``/proc/cpuinfo``."""
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(key: str) -> str:
    """Value of the first line of ``/proc/cpuinfo`` that begins with ``key``; empty if there is none."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
