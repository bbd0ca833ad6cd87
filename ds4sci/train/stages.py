"""Stages of a run on one rank, and the listeners that record them.

A stage has a beginning and an end: ``staging``, ``init``, ``run``, and within ``run`` ``train`` (the steps between two
evaluations), ``eval`` and ``save``. Stages nest. Listeners, such as the MLPerf log and the monitor, hear every stage
and message of their rank, in order and in the thread that trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol


class StageListener(Protocol):
    """Receiver of the stages of one rank. ``values`` are plain JSON values."""

    def begin(self, stage: str, values: Mapping[str, Any]) -> None:
        """Called when a stage begins."""

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        """Called when a stage ends, with the values of its end. ``values["error"]`` names the type of an exception."""

    def message(self, key: str, values: Mapping[str, Any]) -> None:
        """Called for an event without duration."""

    def close(self) -> None:
        """Called once, after the last stage."""


class Stages:
    """The stages of one rank.

    listeners  called in this order
    """

    def __init__(self, *listeners: StageListener) -> None:
        self.listeners = list(listeners)

    @contextmanager
    def stage(self, name: str, **values: Any) -> Iterator[dict[str, Any]]:
        """Context of the stage ``name``. Yields the values of its end, to which the caller may add."""
        for listener in self.listeners:
            listener.begin(name, values)
        last: dict[str, Any] = {}
        try:
            yield last
        except BaseException as error:
            last["error"] = type(error).__name__
            raise
        finally:
            for listener in reversed(self.listeners):
                listener.end(name, last)

    def message(self, key: str, **values: Any) -> None:
        """Report an event without duration."""
        for listener in self.listeners:
            listener.message(key, values)

    def close(self) -> None:
        """Close the listeners."""
        for listener in self.listeners:
            listener.close()
