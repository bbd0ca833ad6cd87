"""Stopping a run in order: Ctrl-C, SIGTERM, or the launcher's death set a flag that the loop reads between steps.

DeepSpeed's launcher sends SIGTERM to its ranks, one after the other, when it gets SIGINT or SIGTERM itself, and gives
each 30 s before SIGKILL. The ``deepspeed`` command above it forwards nothing: killed by SIGTERM it leaves launcher and
ranks running without a parent, so a rank also watches that the processes which started it are still there.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil


class StopRequest:
    """A context in which SIGINT and SIGTERM ask the run to stop instead of killing it.

    A second Ctrl-C kills as usual. ``reason`` says who asked, once somebody did.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[int, Any] = {}
        self._ancestors = _launcher_processes()

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if self.reason is None:
            gone = next((p for p in self._ancestors if not _is_alive(p)), None)
            if gone is not None:
                self.reason = f"the launcher (process {gone.pid}) is gone"
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _launcher_processes() -> list[psutil.Process]:
    """The launcher processes above this one: DeepSpeed's ``launch`` and, above it, the ``deepspeed`` command."""
    found: list[psutil.Process] = []
    try:
        parent = psutil.Process(os.getppid())
        if "deepspeed.launcher.launch" in parent.cmdline():
            found.append(parent)
            runner = parent.parent()
            if runner is not None and any(_is_runner(argument) for argument in runner.cmdline()[:4]):
                found.append(runner)
    except psutil.Error:
        return found
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_runner(argument: str) -> bool:
    return argument == "deepspeed.launcher.runner" or Path(argument).name in ("deepspeed", "deepspeed.pt", "ds")
