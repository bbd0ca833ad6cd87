"""Watchdog of a rank: records a rank that makes no progress, and ends its process.

Collective operations wait for all ranks. If one of them is stopped, or waits elsewhere, the others wait until a timeout
of hours. The watchdog is a thread. It ends the process if the training loop calls ``beat`` no more, so that a launcher
notices and, if it can, restarts the run. A rank that waits while another one makes progress is left alone.

A thread sees nothing while another one holds the interpreter lock (GIL), as native code may do. Then the watchdogs of
the other ranks end the run; a single rank stays as it is.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import warnings
from pathlib import Path

from ds4sci.train import failures
from ds4sci.train.failures import Heartbeat, heartbeat_file

HANG_EXIT_CODE = 75
"""Exit code of a rank that its watchdog ends (EX_TEMPFAIL of sysexits.h)."""

START_SECONDS = 7200.0
"""Limit before the first step: one rank may index the data while the others wait, and programs are compiled."""

DEAD_RANK_SECONDS = 15.0
"""How long a rank may wait after another rank of its machine has died. NCCL does not notice the death."""


class Watchdog:
    """Heartbeat and watchdog of this rank. ``start`` makes it the one that ``beat`` refers to.

    run    the run folder
    ranks  the ranks of this machine
    limit  seconds without a beat that end the process; 0: never
    """

    def __init__(self, run: Path, rank: int, *, attempt: int, ranks: range, limit: float) -> None:
        self.run, self.ranks, self.limit = run, ranks, limit
        self.state = Heartbeat.of_this_process(rank, attempt)
        self._interval = min(max(limit / 50, 0.2), 5.0)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._file = heartbeat_file(run, rank)
        self._thread = threading.Thread(target=self._watch, name="ds4sci-watchdog", daemon=True)

    def start(self) -> None:
        """Write the first heartbeat and begin to watch."""
        global _current
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._stacks = self._file.with_suffix(".stacks").open("w", encoding="utf-8")
        faulthandler.register(failures.STACK_SIGNAL, self._stacks, all_threads=True)
        self.state.write(self._handle)
        _current = self
        if self.limit:
            self._thread.start()

    def stop(self, *, failed: bool = False) -> None:
        """Stop watching. The heartbeat is removed, unless the rank has ``failed``."""
        global _current
        _current = None
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if failed:
            return
        faulthandler.unregister(failures.STACK_SIGNAL)
        self._stacks.close()
        os.close(self._handle)
        for file in (self._file, self._file.with_suffix(".stacks")):
            file.unlink(missing_ok=True)

    def beat(self, phase: str | None = None, step: int | None = None) -> None:
        """Report progress; see the function ``beat``."""
        with self._lock:
            state = self.state
            state.beats += 1
            state.progress = state.time = time.time()
            state.phase = state.phase if phase is None else phase
            state.step = state.step if step is None else step
            self._write()

    def record(self, kind: str, message: str, stacks: dict[str, str]) -> None:
        """Record a failure of this rank."""
        failures.claim(self.run, self.state.rank)
        failures.record(self.run, self.state, kind, message, stacks)

    def dead_neighbours(self, seconds: float = 2.0) -> list[str]:
        """Record the ranks of this machine that are dead, and describe them. A rank loses its connections before its
        process has ended; therefore wait up to ``seconds`` for one."""
        end = time.monotonic() + seconds
        while not (found := failures.record_neighbours(self.run, self.state, self.ranks)) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _write(self) -> None:
        try:
            self.state.write(self._handle)
        except OSError as error:  # must not end a run that can go on
            warnings.warn(f"{self._file}: {error}; failures.jsonl may name an earlier step of this rank", stacklevel=2)

    def _watch(self) -> None:
        beats, idle, alone, last = -1, 0.0, 0.0, time.monotonic()
        while not self._stopped.wait(self._interval):
            # A process that was stopped, or a laptop that slept, has not been idle: count only what this thread saw.
            now = time.monotonic()
            passed, last = min(now - last, 2 * self._interval), now
            with self._lock:
                if self.state.beats != beats:
                    beats, idle, alone = self.state.beats, 0.0, 0.0
                self.state.time = time.time()
                self._write()
            idle += passed
            alone = alone + passed if self._has_dead_neighbour() else 0.0
            limit = max(self.limit, START_SECONDS) if self.state.phase == "start" else self.limit
            if min(idle, alone) > DEAD_RANK_SECONDS:
                self._leave(idle)
            elif idle > limit:
                # Another rank may make progress while this one waits: then the run has not hung.
                idle = min(idle, time.time() - max(o.progress for o in [self.state, *self._others()]))
                if idle > limit:
                    self._leave(idle)

    def _has_dead_neighbour(self) -> bool:
        others = self._others(self.ranks) if len(self.ranks) > 1 else []
        return any(o.phase != "end" and o.host == self.state.host and o.process() is None for o in others)

    def _others(self, ranks: range | None = None) -> list[Heartbeat]:
        """Return the heartbeats of the other ranks, of ``ranks`` or of all."""
        found = failures.read_heartbeats(self.run, ranks)
        return [o for o in found if o.attempt == self.state.attempt and o.rank != self.state.rank]

    def _leave(self, idle: float) -> None:
        """Record stacks and suspects, print a message unless another rank has, and end the process."""
        self._lock.acquire()  # a stopped rank is continued below: this one must not begin another step or checkpoint
        stacks = failures.own_stacks()
        message = f"no progress for {idle:.0f} s in step {self.state.step} ({self.state.phase})"
        try:
            first = claim_error_file(self.run, f"rank {self.state.rank}: {message}\n" + "\n".join(stacks.values()))
            suspects = failures.record_neighbours(self.run, self.state, self.ranks, silent_after=3 * self._interval + 5)
            if first and not suspects:
                suspects = self._ranks_behind()
            message += "; " + "; ".join(suspects or ["no rank is behind this one"])
            try:
                self.record("hang", message, stacks)
            except OSError as error:
                message += f" ({error})"
            if first:
                print(
                    f"error: rank {self.state.rank}: {message}. Stacks: {self.run / 'failures.jsonl'}. "
                    f"Resume from the last checkpoint with: ds4sci train --resume {self.run}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        finally:
            os._exit(HANG_EXIT_CODE)

    def _ranks_behind(self) -> list[str]:
        """Describe up to four ranks of all machines that are in an earlier step than this one."""
        behind = sorted((o for o in self._others() if o.step < self.state.step), key=lambda o: o.step)
        return [f"{o} is behind, {time.time() - o.time:.0f} s after its last sign of life" for o in behind[:4]]


_current: Watchdog | None = None
"""The watchdog of this process, which is one rank."""


def beat(phase: str | None = None, step: int | None = None) -> None:
    """Report progress of this rank: a micro-batch, a batch of an evaluation, a file of a checkpoint.

    phase, step  new values, if they change; see ``ds4sci.train.failures``

    Does nothing without a running watchdog.
    """
    if _current is not None:
        _current.beat(phase, step)


def claim_error_file(run: Path, text: str) -> bool:
    """Write ``RUN/error.txt`` and return True if this rank is the first to fail; the others fail because of it."""
    try:
        with (run / "error.txt").open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        return False
    except OSError:
        return True  # the disk may be full; then every rank reports its error
    return True
