"""Memory that is available to this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def available_bytes(device: Any = "cpu") -> int | None:
    """Memory in bytes that this process can still allocate, on the host or on the GPU ``device``; None if unknown.

    On the host it is the smallest of the kernel's MemAvailable, the remaining limits of the control groups (containers,
    batch systems), and the remaining limits of ``ulimit -v`` and ``ulimit -d``.
    """
    if getattr(device, "type", device) == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    left = [from_proc("meminfo", "MemAvailable"), *_left_by_control_groups(), *_left_by_ulimit()]
    return min((max(0, one) for one in left if one is not None), default=None)


def from_proc(file: str, key: str) -> int | None:
    """Bytes in the line ``key: … kB`` of a file in ``/proc``; None without such a line."""
    path = Path("/proc") / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _left_by_control_groups() -> list[int]:
    """Remaining memory of the control groups of this process and of all their parents, as far as they have a limit."""
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
    """Limit of a control group minus its usage, plus the file cache, which can be reclaimed."""
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
