"""Events and samples of one rank as JSON lines: ``RUN/monitor/rank_N.jsonl``.

A line has ``time`` (seconds since 1970), ``rank``, ``attempt`` (number of the start of the run, from 0) and ``kind``:

- ``begin`` and ``end`` of the stage ``name``, nested, with its values. ``on`` is ``host``, or ``device`` for the time
  during which the GPU works on the stage. Lines of the host have ``counters``, the process counters at that moment.
- ``message`` with a ``name`` and its values. The first of each attempt, ``monitor``, describes host and process.
- ``sample``: all counters (``ds4sci.monitor.counters``).

Each line is one write, so that a killed process loses at most the line it is writing. Events need about 0.3 kB each;
samples are thinned: at ``MAX_SAMPLES`` every second one is dropped, and from then on they are taken half as often.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds4sci.files.atomic_files import replacing
from ds4sci.files.json_values import to_plain

MAX_SAMPLES = 8192
"""Samples that a file holds: 2.3 hours at 1 Hz, about 3 MB."""
FOLDER = "monitor"
LINE_KEYS = frozenset({"time", "rank", "attempt", "kind", "on", "name", "counters"})
"""Keys that a line itself uses; the others are values of the event."""
_SAMPLE = b'"kind":"sample"'


def log_file(run: Path, rank: int) -> Path:
    """Path of the events of ``rank`` in the run folder ``run``."""
    return run / FOLDER / f"rank_{rank}.jsonl"


class EventLog:
    """Writer of one rank's file, for several threads. It continues an existing file.

    attempt  number of this start of the run
    stride   samples are to be taken at every ``stride``-th interval; it doubles when the file is thinned

    A file that cannot be written gives one warning: a full disk must not end the run.
    """

    def __init__(self, path: Path, rank: int, attempt: int, *, max_samples: int = MAX_SAMPLES) -> None:
        self.path, self.rank, self.attempt, self.max_samples = path, rank, attempt, max_samples
        self.stride, self._samples, self._handle, self._warned = 1, 0, -1, False
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            for line in read_events(path):
                self._samples += line["kind"] == "sample"
                if line["kind"] == "message" and line.get("name") in ("monitor", "thinned"):
                    self.stride = int(line["stride"])
        except OSError as error:
            self._warn(error)

    def write(self, kind: str, *, at: float | None = None, **values: Any) -> None:
        """Append one line. ``at``: its time; by default now."""
        head = {"time": round(time.time() if at is None else at, 4), "rank": self.rank, "attempt": self.attempt}
        line = json.dumps(head | {"kind": kind} | to_plain(values), separators=(",", ":"), default=str)
        with self._lock:
            if self._handle < 0:
                return
            try:
                os.write(self._handle, line.encode() + b"\n")
                if kind == "sample":
                    self._samples += 1
                    if self._samples >= self.max_samples:
                        self._thin()
            except OSError as error:
                self._warn(error)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _open(self) -> None:
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")  # ends the line that a killed process was writing

    def _thin(self) -> None:
        """Drop every second sample, and record the new stride."""
        self.stride *= 2
        self._samples = 0
        number = 0
        with replacing(self.path, sync=False) as handle, self.path.open("rb") as old:
            for line in old:
                if _SAMPLE in line:
                    number += 1
                    if number % 2 == 0:
                        continue
                    self._samples += 1
                handle.write(line)
            note = {"time": round(time.time(), 4), "rank": self.rank, "attempt": self.attempt, "kind": "message"}
            note |= {"name": "thinned", "stride": self.stride}
            handle.write(json.dumps(note, separators=(",", ":")).encode() + b"\n")
        os.close(self._handle)
        self._handle = -1
        self._open()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            warnings.warn(f"{self.path}: {error}; the timeline of this rank will have gaps", stacklevel=3)
        self._warned = True


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file, without those that are incomplete."""
    with path.open("rb") as handle:
        for line in handle:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and {"time", "rank", "attempt", "kind"} <= event.keys():
                yield event
