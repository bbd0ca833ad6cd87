"""Time that a rank spends in collective operations, as its Python code sees it.

Functions of ``torch.distributed`` are replaced by timed ones while a recorder is active; DeepSpeed calls the same
functions. For gloo, which blocks, the time includes waiting for the slower ranks. NCCL's operations return at once and
run beside the computation: there, the time is that of the calls and waits only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch.distributed as dist

TIMED = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter",
    "reduce_scatter_tensor", "all_to_all_single", "all_to_all", "send", "recv", "barrier",
)  # fmt: skip
"""Functions of ``torch.distributed`` that are timed. Those that call others, such as gathers of objects, are counted
through what they call."""


class CollectiveTimes(AbstractContextManager["CollectiveTimes"]):
    """Recorder of the seconds of collective operations since the last ``reset``. A context manager."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0
        self._originals: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> CollectiveTimes:
        for name in TIMED:
            self._originals[name] = getattr(dist, name)
            setattr(dist, name, self._timed(self._originals[name]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, function in self._originals.items():
            setattr(dist, name, function)
        self._originals.clear()

    def reset(self) -> float:
        """Return the seconds so far, and start again at 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:  # an operation that is made of others
                return function(*args, **kwargs)
            self._depth, began = 1, time.perf_counter()
            try:
                work = function(*args, **kwargs)
            finally:
                self._depth = 0
                self.seconds += time.perf_counter() - began
                self.calls += 1
            return work if work is None else _TimedWork(work, self)

        return call


class _TimedWork:
    """Handle of an asynchronous operation that adds the time of ``wait`` to a recorder."""

    def __init__(self, work: Any, times: CollectiveTimes) -> None:
        self._work, self._times = work, times

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._times.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
