"""Description of the machine, the package versions and the commit, for the provenance of results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ds4sci.machine import processor

PACKAGES = ("ds4sci", "torch", "deepspeed", "numpy", "transformers", "triton")


def describe() -> dict[str, Any]:
    """Description of this machine as JSON values.

    Keys: ``cpu`` (model), ``cores`` (usable), ``cores_present``, ``memory_gb``, ``gpus`` (name, memory), ``system``,
    ``python``, ``versions`` (of ``PACKAGES``), ``commit`` (of ds4sci).
    """
    return {
        "cpu": processor.model_name(),
        "cores": processor.usable_cores(),
        "cores_present": os.cpu_count(),
        "memory_gb": round(_memory_bytes() / 2**30, 1),
        "gpus": _gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": commit(),
    }


def commit() -> str:
    """Git commit of the source of ds4sci, with ``+changes`` if tracked files differ from it.

    Without git or a checkout, the version of ds4sci.
    """
    here = Path(__file__).resolve().parents[1]
    if (here.parent / ".git").exists():
        try:
            head = _git(here, "rev-parse", "HEAD")
            return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.SubprocessError):
            pass  # git is not installed: the version is used instead
    from ds4sci import __version__

    return f"ds4sci {__version__}"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


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
