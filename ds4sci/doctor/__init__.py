"""Checks of this machine, this installation and a run file: ``ds4sci doctor``.

Every check is read-only: it builds nothing, changes nothing and needs no network. A check that fails or does not end is
a finding like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ds4sci.doctor.builds import compiler, extensions, libaio, native_locks
from ds4sci.doctor.distributions import extras, packages
from ds4sci.doctor.finding import Finding, Level
from ds4sci.doctor.hardware import accelerators, numa, processor
from ds4sci.doctor.implementations import kernels
from ds4sci.doctor.rank_probe import LIMIT, rank_connections
from ds4sci.doctor.storage import disk, shared_memory

__all__ = ["CHECKS", "Finding", "Level", "run_checks"]

Check = Callable[[], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    packages, processor, numa, accelerators, compiler, libaio, extensions, native_locks, disk, shared_memory, extras,
    rank_connections, kernels,
)  # fmt: skip
"""The checks, in the order of the report."""

CHECK_SECONDS = 2 * LIMIT + 60
"""Time limit of a check; ``rank_connections`` may take twice its own limit."""


def run_checks(checks: tuple[Check, ...] = CHECKS, seconds: float = CHECK_SECONDS) -> list[Finding]:
    """Results of ``checks``, in order. Raises nothing, and takes at most ``seconds`` per check."""
    return [finding for check in checks for finding in _guarded(check, seconds)]


def _guarded(check: Check, seconds: float) -> list[Finding]:
    """Return the findings of ``check``, and one more if it raises an error or does not end in time.

    It runs in a thread: a system call on a dead network disk cannot be interrupted.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            for finding in check():
                found.append(finding)
        except Exception as error:
            detail = f"the check failed: {type(error).__name__}: {error}"
            found.append(Finding(check.__name__, "check", "problem", detail))

    thread = threading.Thread(target=run, name=f"doctor-{check.__name__}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return found
    detail = f"no answer within {seconds:.0f} s, such as from a network disk that is not reachable"
    return [*found, Finding(check.__name__, "check", "problem", detail)]
