"""What a measurement was made on: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("ds4sci", "torch", "deepspeed", "numpy", "transformers", "triton")


def describe() -> dict[str, Any]:
    """Plain values: ``cpu`` model, ``cores`` usable and present, ``memory_gb``, ``gpus`` (name, memory), ``system``,
    ``python``, ``versions`` of the packages that matter, ``commit`` of ds4sci."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_present": os.cpu_count(),
        "memory_gb": round(_memory_bytes() / 2**30, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": commit(),
    }


def commit() -> str:
    """The git commit that ds4sci's source stands at, with ``+changes`` when files differ from it; else its version."""
    here = Path(__file__).resolve().parent
    if (here.parent / ".git").exists():
        try:
            head = _git(here, "rev-parse", "HEAD")
            return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.SubprocessError):
            pass  # a checkout without git installed: the version has to do
    from ds4sci import __version__

    return f"ds4sci {__version__}"


def available_bytes(device: Any = "cpu") -> int | None:
    """Memory that this process can still take, on the machine or on the GPU ``device``; None where nothing tells.

    On the machine the least of what the kernel calls available, what the control groups (containers, batch systems)
    leave of their limits, and what ``ulimit -v`` and ``ulimit -d`` leave.
    """
    if getattr(device, "type", device) == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [from_proc("meminfo", "MemAvailable"), *_left_by_control_groups(), *_left_by_ulimit()]
    return min((max(0, one) for one in left if one is not None), default=None)


def from_proc(file: str, key: str) -> int | None:
    """Bytes that a line ``key: … kB`` of a file in ``/proc`` tells; None where there is none."""
    path = Path("/proc") / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _left_by_control_groups() -> list[int]:
    """Of this process's groups and all above them; in a container the outermost one is the container's own."""
    own, root = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
    found: list[int | None] = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top, files = root, ("memory.max", "memory.current", "memory.stat", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        limit, usage, stat, cache = files
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                found.append(_left(folder / limit, folder / usage, folder / stat, cache))
    return [one for one in found if one is not None]


def _left(limit: Path, usage: Path, stat: Path, cache: str) -> int | None:
    """What a control group leaves: its limit less its usage, of which the file cache can be taken back."""
    try:
        most = int(limit.read_text())
        kept = dict(line.split() for line in stat.read_text().splitlines())
        return most - int(usage.read_text()) + int(kept.get(cache, 0))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _left_by_ulimit() -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    found = []
    for kind, key in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, used = resource.getrlimit(kind)[0], from_proc("self/status", key)
        if limit != resource.RLIM_INFINITY and used is not None:
            found.append(limit - used)
    return found


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": p.name, "memory_gb": round(p.total_memory / 2**30, 1)} for p in properties]


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
