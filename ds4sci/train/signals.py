"""Orderly stop of a run: SIGINT, SIGTERM or the death of the launcher set a flag that the loop checks between steps.

On SIGINT or SIGTERM DeepSpeed's launcher sends SIGTERM to its ranks, one after the other, and SIGKILL 30 s later.
torchelastic's agent forwards the signal, and sends SIGKILL after its ``--shutdown-timeout``. The ``deepspeed`` command
forwards nothing: if SIGTERM kills it, launcher and ranks keep running without a parent.
Therefore a rank also checks that the processes that started it still exist.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil


class StopRequest:
    """Context manager in which SIGINT and SIGTERM request a stop instead of killing the process.

    A second Ctrl-C raises KeyboardInterrupt. A rank that a launcher started and that fails is not killed by SIGTERM
    from then on. ``reason`` names the cause after a request and is None before.
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
            # A launcher sends SIGTERM when a rank fails. It must not end the others before they have written why.
            if not (number == signal.SIGTERM and isinstance(error, Exception) and self._ancestors):
                signal.signal(number, handler)

    def __bool__(self) -> bool:
        if self.reason is None:
            gone = next((p for p in self._ancestors if not _is_alive(p)), None)
            if gone is not None:
                self.reason = f"the launcher (process {gone.pid}) has ended"
        return self.reason is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _launcher_processes() -> list[psutil.Process]:
    """Return the launcher processes above this one: torchelastic's agent, or DeepSpeed's ``launch`` and the
    ``deepspeed`` command above it."""
    found: list[psutil.Process] = []
    try:
        parent = psutil.Process(os.getppid())
        if "deepspeed.launcher.launch" in parent.cmdline():
            found.append(parent)
            runner = parent.parent()
            if runner is not None and any(_is_runner(argument) for argument in runner.cmdline()[:4]):
                found.append(runner)
        elif any(_is_agent(argument) for argument in parent.cmdline()[:4]):
            found.append(parent)
    except psutil.Error:
        return found
    return found


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_agent(argument: str) -> bool:
    return argument in ("ds4sci.train.agent", "torch.distributed.run") or Path(argument).name == "torchrun"


def _is_runner(argument: str) -> bool:
    return argument == "deepspeed.launcher.runner" or Path(argument).name in ("deepspeed", "deepspeed.pt", "ds")
