"""Checks of free space on disks and in shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ds4sci.doctor.finding import Finding, Level, gpu_count

MIN_FREE_BYTES = 5e9
"""Disk space for an environment, its extensions and a few checkpoints."""

SHARED_MEMORY = Path("/dev/shm")
DOCKER_DEFAULT_BYTES = 64 * 2**20
"""Size of /dev/shm in a container that is started without ``--shm-size``."""
GPU_BYTES = 2**30
"""Free shared memory that is enough for NCCL on a machine with several GPUs."""


def disk() -> Iterator[Finding]:
    """Free space for runs, caches and temporary files."""
    places = {"runs": Path.cwd(), "home": Path.home(), "temporary": Path(os.environ.get("TMPDIR", "/tmp"))}
    for name, place in places.items():
        if not place.exists():
            yield Finding("disk", name, "problem", f"{place} does not exist", f"mkdir -p {place}")
            continue
        free = shutil.disk_usage(place).free
        tight = free < MIN_FREE_BYTES
        remedy = (
            f"less than {MIN_FREE_BYTES / 1e9:.0f} GB: delete old runs, or set train.output to another disk"
            if tight
            else ""
        )
        yield Finding("disk", name, "optional" if tight else "ok", f"{free / 1e9:.1f} GB free at {place}", remedy)


def shared_memory(folder: Path = SHARED_MEMORY, gpus: int | None = None) -> Iterator[Finding]:
    """Size of /dev/shm, through which NCCL connects the GPUs of a machine, and Python's worker processes their queues.

    gpus  GPUs of this machine; by default those that torch finds
    """
    gpus = gpu_count() if gpus is None else gpus
    remedy = "start the container with --shm-size=8g or --ipc=host, or mount a larger tmpfs at /dev/shm"
    if not folder.is_dir():
        level: Level = "problem" if gpus > 1 else "optional"
        reason = "NCCL cannot connect GPUs" if gpus > 1 else "Python's worker processes (`ds4sci data build`) need it"
        yield Finding("disk", "shared memory", level, f"{folder} does not exist: {reason}", remedy)
        return
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {folder}"
    if gpus < 2:
        detail += "; one device or CPU ranks need little of it"
        yield Finding("disk", "shared memory", "ok", detail)
    elif usage.free <= DOCKER_DEFAULT_BYTES:
        detail += f": too little for NCCL between {gpus} GPUs (Docker's default is 64 MiB)"
        yield Finding("disk", "shared memory", "problem", detail, f"{remedy}; NCCL_SHM_DISABLE=1 works, but is slower")
    elif usage.free < GPU_BYTES:
        yield Finding("disk", "shared memory", "optional", f"{detail}: little for NCCL between {gpus} GPUs", remedy)
    else:
        yield Finding("disk", "shared memory", "ok", detail)
