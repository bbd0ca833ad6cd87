"""One line of the report of ``ds4sci doctor``, and look-ups that several checks share."""

from __future__ import annotations

import importlib.metadata
import subprocess
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "optional", "problem"]

COMMAND_SECONDS = 20.0
"""Time limit of a program that a check runs."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``problem``: training cannot work. ``optional``: a feature is off, something is slower,
    or a fallback runs."""

    section: str
    name: str
    level: Level
    detail: str
    remedy: str = ""


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu_count() -> int:
    """GPUs that torch can use; 0 without torch."""
    if installed("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def first_line(command: list[str]) -> str:
    """First line that ``command`` prints; empty if it prints none, fails to start or exceeds ``COMMAND_SECONDS``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "")
