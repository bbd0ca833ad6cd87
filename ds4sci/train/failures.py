"""Failure records of a run, and the heartbeats of its ranks.

``RUN/failures.jsonl`` has one JSON object per failed rank:

- ``time``, ``attempt`` (number of the start of the run, from 0), ``rank``, ``host``, ``pid``;
- ``step`` (optimizer steps done) and ``phase`` (``start``, ``step``, ``evaluate``, ``save`` or ``end``);
- ``kind``: ``exception``, ``lost connection``, ``hang``, ``killed``, ``stopped`` or ``silent``;
- ``message`` and ``stacks``, a text per thread.

A rank that was killed cannot write its record. ``RUN/heartbeats/rank_NNNNN`` therefore holds the step and phase of each
rank; the file outlives the process. Another rank of the same machine writes the record, or the next start of the run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil

STACK_SIGNAL = signal.SIGUSR2
"""On this signal a rank writes its stacks to ``RUN/heartbeats/rank_NNNNN.stacks``, even if it holds the GIL."""

_SIZE = 512
"""Bytes of a heartbeat file. One write replaces all of them, so that a reader never sees a mixture."""


@dataclass
class Heartbeat:
    """Last known state of a rank.

    beats     number of calls of ``watchdog.beat``
    progress  time of the last of them, in seconds since 1970
    time      when the process was last alive
    born      when the process started; tells it from a later process with the same id
    """

    rank: int
    attempt: int
    host: str
    pid: int
    born: float
    step: int = 0
    phase: str = "start"
    beats: int = 0
    progress: float = 0.0
    time: float = 0.0

    @classmethod
    def of_this_process(cls, rank: int, attempt: int) -> Heartbeat:
        """Return a first heartbeat of this process."""
        born = psutil.Process().create_time()
        now = time.time()
        return cls(rank, attempt, socket.gethostname(), os.getpid(), born, progress=now, time=now)

    def write(self, handle: int) -> None:
        """Replace the content of an open file."""
        os.pwrite(handle, json.dumps(vars(self)).encode().ljust(_SIZE), 0)

    def process(self) -> psutil.Process | None:
        """Return the process of this rank, or None if it has ended. Only for ranks of this machine."""
        try:
            process = psutil.Process(self.pid)
            ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            return None if ended or abs(process.create_time() - self.born) > 1 else process
        except psutil.Error:
            return None

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}, step {self.step}, {self.phase})"


def heartbeat_file(run: Path, rank: int) -> Path:
    """Return the path of the heartbeat of ``rank``."""
    return run / "heartbeats" / f"rank_{rank:05d}"


def read_heartbeats(run: Path, ranks: range | None = None) -> list[Heartbeat]:
    """Return the heartbeats of ``ranks``, by default of all ranks of the run, without unreadable ones."""
    files = (
        sorted((run / "heartbeats").glob("rank_?????")) if ranks is None else [heartbeat_file(run, r) for r in ranks]
    )
    found = []
    for file in files:
        try:
            found.append(Heartbeat(**json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # not written yet, or by another version
    return found


def begin_attempt(run: Path) -> int:
    """Record the ranks that ended without a record, remove all heartbeats and return the number of this attempt.

    Only rank 0 calls it, before any rank writes a heartbeat. The folder stays: on a network file system other machines
    may still know it.
    """
    folder = run / "heartbeats"
    for heartbeat in read_heartbeats(run):
        if claim(run, heartbeat.rank):
            record(run, heartbeat, "killed", "the process ended without a message; found at the next start of the run")
    counter = folder / "attempt"
    attempt = int(counter.read_text(encoding="utf-8")) + 1 if counter.is_file() else 0
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("rank_*"):
        file.unlink()
    counter.write_text(f"{attempt}\n", encoding="utf-8")
    return attempt


def claim(run: Path, rank: int) -> bool:
    """Whether the caller is the first to claim the record of ``rank`` in this attempt."""
    try:
        heartbeat_file(run, rank).with_suffix(".recorded").touch(exist_ok=False)
    except OSError:
        return False
    return True


def record(run: Path, rank: Heartbeat, kind: str, message: str, stacks: dict[str, str] | None = None) -> None:
    """Append one line to ``RUN/failures.jsonl`` by a single write, so that lines of several ranks do not mix."""
    line = {
        "time": round(time.time(), 3), "attempt": rank.attempt, "rank": rank.rank, "host": rank.host, "pid": rank.pid,
        "step": rank.step, "phase": rank.phase, "kind": kind, "message": message, "stacks": stacks or {},
    }  # fmt: skip
    handle = os.open(run / "failures.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def record_neighbours(run: Path, own: Heartbeat, ranks: range, *, silent_after: float | None = None) -> list[str]:
    """Record the other ranks of this machine that are dead, stopped or silent, and return a description of each.

    ranks         the ranks of this machine
    silent_after  seconds without a sign of life after which a running rank is recorded; None: never

    A stopped rank is continued: it writes its stacks, loses its connections and ends.
    """
    found = []
    for other in read_heartbeats(run, ranks):
        if other.rank == own.rank or other.attempt != own.attempt or other.host != own.host:
            continue
        process, kind, message, stacks = other.process(), "", "", {}
        status = _status(process)
        if process is None:
            if other.phase == "end":
                continue
            kind, message = "killed", "the process ended without a message: it was killed or ran out of memory"
        elif status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            kind, message = "stopped", "the process is stopped (SIGSTOP, or a debugger)"
        elif silent_after is not None and time.time() - other.time > silent_after:
            kind, message = "silent", f"no thread of the process has run for {time.time() - other.time:.0f} s"
        else:
            continue
        if claim(run, other.rank):
            if process is not None:
                stacks = _request_stacks(run, other, process)
            record(run, other, kind, message, stacks)
        elif process is None:
            message = "has ended, see its record"
        found.append(f"{other}: {message}")
    return found


def _status(process: psutil.Process | None) -> str:
    try:
        return process.status() if process is not None else psutil.STATUS_DEAD
    except psutil.Error:
        return psutil.STATUS_DEAD


def _request_stacks(run: Path, rank: Heartbeat, process: psutil.Process) -> dict[str, str]:
    """Return the stacks of another process of this machine, or nothing if it does not answer within 5 s."""
    file = heartbeat_file(run, rank.rank).with_suffix(".stacks")
    try:
        process.send_signal(STACK_SIGNAL)
        process.send_signal(signal.SIGCONT)
    except psutil.Error:
        return {}
    text, end, changed = "", time.monotonic() + 5, time.monotonic()
    while time.monotonic() < end and not (text and time.monotonic() > changed + 0.5):  # 0.5 s without another line
        time.sleep(0.05)
        now = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        text, changed = now, changed if now == text else time.monotonic()
    return {"all threads": text} if text else {}


def own_stacks() -> dict[str, str]:
    """Return the stack of every other thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(number, str(number)): "".join(traceback.format_stack(frame))
        for number, frame in sys._current_frames().items()
        if number != threading.get_ident()
    }
