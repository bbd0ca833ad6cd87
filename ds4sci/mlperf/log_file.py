"""Reader of MLPerf logs, and the search for logs in run folders and submission folders.

A line of a log is ``:::MLLOG {"namespace", "time_ms", "event_type", "key", "value", "metadata"}``. Other lines, and
text before the mark, are ignored, since a log may be the output of a program.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = ":::MLLOG "


@dataclass(frozen=True)
class Finding:
    """A rule that a log does not satisfy.

    file    the log
    line    number of the line, from 1; None for the whole file
    rule    key of the log or name of the rule
    reason  what is wrong and what was expected
    """

    file: Path
    line: int | None
    rule: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else str(self.file)
        return f"{place}: {self.rule}: {self.reason}"


@dataclass(frozen=True)
class Event:
    """One line of a log. ``line`` is its number in the file, from 1; ``time_ms`` are milliseconds since 1970."""

    line: int
    time_ms: float
    key: str
    value: Any
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LogFile:
    """A log.

    file    its path
    events  in the order of the file
    errors  lines that are not valid
    marked  numbers of all lines with the mark, valid or not
    """

    file: Path
    events: tuple[Event, ...]
    errors: tuple[Finding, ...]
    marked: tuple[int, ...]

    @classmethod
    def read(cls, file: Path) -> LogFile:
        """Read ``file``. Raises ValueError if there is no such file or it has no line of an MLPerf log."""
        if not file.is_file():
            raise ValueError(f"{file}: no such file; expected an MLPerf log, such as RUN/mlperf/result_0.txt")
        events: list[Event] = []
        errors: list[Finding] = []
        marked: list[int] = []
        # Line ends as upstream's parser sees them, so that line numbers agree.
        with file.open(encoding="latin-1") as lines:
            for number, text in enumerate(lines, 1):
                _, mark, body = text.rpartition(MARK)
                if not mark:
                    continue
                marked.append(number)
                try:
                    events.append(_event(number, body))
                except ValueError as error:
                    errors.append(Finding(file, number, "format", str(error)))
        if not marked:
            raise ValueError(f"{file}: not an MLPerf log: no line has the mark {MARK.strip()}")
        return cls(file, tuple(events), tuple(errors), tuple(marked))

    def all(self, key: str) -> list[Event]:
        """Every event with ``key``."""
        return [event for event in self.events if event.key == key]

    def first(self, key: str) -> Event | None:
        """The first event with ``key``, or None."""
        return next((event for event in self.events if event.key == key), None)

    def value(self, key: str) -> Any:
        """Value of the first event with ``key``, or None."""
        event = self.first(key)
        return None if event is None else event.value


def _event(number: int, body: str) -> Event:
    try:
        tree = json.loads(body)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON after {MARK.strip()}: {error.msg} (column {error.colno}); is the line cut off?"
        ) from None
    missing = [key for key in ("time_ms", "key", "value", "metadata") if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise ValueError(f"without {', '.join(missing)}; a line has time_ms, key, value and metadata")
    time_ms, key, metadata = tree["time_ms"], tree["key"], tree["metadata"]
    if isinstance(time_ms, bool) or not isinstance(time_ms, int | float):
        raise ValueError(f"time_ms = {time_ms!r}: expected milliseconds since 1970, a number")
    if not isinstance(key, str) or not isinstance(metadata, dict):
        raise ValueError("key must be a string and metadata an object")
    return Event(number, float(time_ms), key, tree["value"], metadata)


def run_logs(run: Path) -> list[Path]:
    """Logs of the run folder ``run``, one per process that worked on the run, oldest first."""
    return _numbered(run / "mlperf")


def find_logs(paths: Iterable[Path]) -> list[Path]:
    """Return the logs that ``paths`` name, without duplicates, in their order.

    A path is a log; a run folder, whose newest log counts; a folder with logs ``result_*.txt``; or a folder of run
    folders. Raises ValueError with the expected layout for a path that is none of them.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif logs := run_logs(path):
            found.append(logs[-1])
        elif logs := _numbered(path):
            found += logs
        elif runs := [logs[-1] for folder in _folders(path) if (logs := run_logs(folder))]:
            found += runs
        else:
            raise ValueError(
                f"{path}: no MLPerf log; expected a log, a run folder with mlperf/result_*.txt (a run writes it if its "
                "run file has [benchmark] and the extra mlperf is installed), a folder of such runs, or a folder with "
                "result_*.txt"
            )
    return list(dict.fromkeys(found))


def _numbered(folder: Path) -> list[Path]:
    """Files ``result_*.txt`` of ``folder``, ordered by number."""
    files = folder.glob("result_*.txt")
    return sorted(files, key=lambda file: (len(file.stem), file.stem))


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
