"""Pools that make samples from positions: in the calling thread, in threads, or in processes.

The workers of a pool share one queue: whoever is idle takes the next position, so that a slow sample delays only its
own worker. A worker process that dies is replaced, and its sample is made again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ds4sci.data import sample_worker
from ds4sci.data.sample_worker import CLAIM, DONE, POSITION, READY, receive, send

WorkerType = Literal["thread", "process"]

MAX_DEATHS = 3
"""Worker processes that one sample may kill before it is an error."""

MAX_PENDING = 512
"""Most samples in flight in a pool of processes: their positions fit into the smallest pipe."""

CLOSE_SECONDS = 0.5
"""Time that worker processes have to end by themselves; a sample in the making is then given up."""


class SampleError(ValueError):
    """A sample that could not be made. The message names it."""


class SamplePool(Protocol):
    """Workers that make samples."""

    def submit(self, position: int) -> None:
        """Queue a position."""

    def receive(self, timeout: float) -> list[tuple[int, Any]]:
        """Return the (position, sample) pairs that are ready, in any order, after at most ``timeout`` seconds.

        Raises SampleError for a sample that cannot be made.
        """

    def close(self) -> None:
        """End the workers and drop what is in flight."""


def start_pool(make: Callable[[int], Any], workers: int, kind: WorkerType, name: Callable[[int], str]) -> SamplePool:
    """Return a pool of ``workers`` workers; with 0, samples are made in the calling thread.

    make  position → sample. For processes it is pickled, and every process has its own copy
    name  position → name of the sample in error messages
    """
    if workers == 0:
        return InlinePool(make, name)
    return ThreadPool(make, workers, name) if kind == "thread" else ProcessPool(make, workers, name)


class InlinePool:
    """Samples made in the calling thread, one per call of ``receive``."""

    def __init__(self, make: Callable[[int], Any], name: Callable[[int], str]) -> None:
        self._make, self._name = make, name
        self._positions: deque[int] = deque()

    def submit(self, position: int) -> None:
        self._positions.append(position)

    def receive(self, timeout: float) -> list[tuple[int, Any]]:
        if not self._positions or timeout == 0:
            return []
        position = self._positions.popleft()
        try:
            return [(position, self._make(position))]
        except Exception as error:
            raise _sample_error(self._name(position), position, type(error).__name__, str(error)) from error

    def close(self) -> None:
        self._positions.clear()


class ThreadPool:
    """Samples made by threads: for functions that release the interpreter lock, such as large calls of numpy."""

    def __init__(self, make: Callable[[int], Any], workers: int, name: Callable[[int], str]) -> None:
        self._make, self._name = make, name
        self._positions: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ds4sci-sample-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (position := self._positions.get()) is not None and not self._closed:
            try:
                self._results.put((position, self._make(position), None))
            except Exception as error:
                self._results.put((position, None, error))

    def submit(self, position: int) -> None:
        self._positions.put(position)

    def receive(self, timeout: float) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        try:
            while True:
                wait = timeout if not found else 0.0
                position, sample, error = self._results.get(timeout=wait) if wait else self._results.get_nowait()
                if error is not None:
                    raise _sample_error(self._name(position), position, type(error).__name__, str(error)) from error
                found.append((position, sample))
        except queue.Empty:
            return found

    def close(self) -> None:
        self._closed = True
        for _ in self._threads:
            self._positions.put(None)
        for thread in self._threads:
            thread.join()


@dataclass
class _Worker:
    """A worker process. ``claim``: the position that it works on; ``is_ready``: it has loaded its function."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    claim: int | None = None
    is_ready: bool = False


class ProcessPool:
    """Samples made by processes; see ``ds4sci.data.sample_worker`` for how they are connected.

    Raises ValueError on systems without SEQPACKET sockets and files in memory, which Linux has.
    """

    def __init__(self, make: Callable[[int], Any], workers: int, name: Callable[[int], str]) -> None:
        if not hasattr(os, "memfd_create"):
            raise ValueError(f"worker processes need Linux; this is {sys.platform}: use worker threads")
        if getattr(make, "__module__", type(make).__module__) == "__main__":
            raise ValueError(f"{make} is defined in __main__, which worker processes do not have; move it to a module")
        self._name = name
        self._program = (list(sys.path), pickle.dumps(make))
        self._pending: dict[int, None] = {}  # in the order of submission
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._queue_end, self._queue = os.pipe()
        # another description of the pipe's end: what is read here must not block, what the workers read must
        self._drain = os.open(f"/proc/self/fd/{self._queue_end}", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for _ in range(workers):
                self._start_worker()
            for worker in self._workers:
                self._send_program(worker)
        except BaseException:
            self.close()
            raise

    def submit(self, position: int) -> None:
        if len(self._pending) >= MAX_PENDING:
            raise ValueError(f"at most {MAX_PENDING} samples can be in flight")
        self._pending[position] = None
        os.write(self._queue, POSITION.pack(position))

    def receive(self, timeout: float) -> list[tuple[int, Any]]:
        found = []
        for key, _ in self._selector.select(timeout):
            worker: _Worker = key.data
            if (message := receive(worker.connection)) is None:
                self._replace(worker)
                continue
            kind, position, value = message
            if kind == READY:
                worker.is_ready, self._failed_starts = True, 0
            elif kind == CLAIM:
                worker.claim = position
            elif kind == DONE:
                worker.claim = None
                if position in self._pending:  # a position is queued twice if a worker dies; see _replace
                    del self._pending[position]
                    found.append((position, value))
            elif position < 0:
                raise SampleError(f"worker processes cannot load their function: {value[0]}: {value[1]}\n{value[2]}")
            else:
                error = _sample_error(self._name(position), position, *value[:2])
                error.add_note(f"In the worker process:\n{value[2]}")
                raise error
        return found

    def close(self) -> None:
        if self._queue < 0:
            return
        os.close(self._queue)
        self._read_queue()  # workers would make what is still queued
        os.close(self._drain)
        os.close(self._queue_end)
        self._queue = -1
        self._selector.close()
        for worker in self._workers:
            worker.connection.close()
        end = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()

    def _start_worker(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = (self._queue_end, theirs.fileno())
        # one thread per process: the workers are the parallelism
        variables = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", sample_worker.__file__, *map(str, files)],
                pass_fds=files, stdin=subprocess.DEVNULL, env=variables,
            )  # fmt: skip
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _send_program(self, worker: _Worker) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died, which ``receive`` notices
            send(worker.connection, READY, value=self._program)

    def _replace(self, worker: _Worker) -> None:
        """Start another process for a dead one, and queue the samples again that may be lost.

        These are all that no living worker has claimed: what was still queued is read back. A worker may have taken a
        position whose claim has not arrived; it is then made twice, with the same result, of which one is dropped.
        """
        self._selector.unregister(worker.connection)
        worker.connection.close()
        self._workers.remove(worker)
        code = worker.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if worker.claim is not None:
            self._deaths[worker.claim] += 1
            if self._deaths[worker.claim] >= MAX_DEATHS:
                raise SampleError(
                    f"sample {self._name(worker.claim)} (position {worker.claim}) ended {MAX_DEATHS} worker processes, "
                    f"the last one with: {cause}. Out of memory, or a fault in native code? Use fewer workers, or "
                    "remove the sample"
                )
        elif not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS * (
                len(self._workers) + 1
            ):  # one after the other, with none that started
                raise SampleError(
                    f"worker processes end before their first sample, the last one with: {cause}; see their messages "
                    "above, or use worker threads"
                )
        self._send_program(self._start_worker())
        self._read_queue()
        claimed = {worker.claim for worker in self._workers}
        for position in self._pending:
            if position not in claimed:
                os.write(self._queue, POSITION.pack(position))

    def _read_queue(self) -> None:
        """Remove everything from the queue."""
        try:
            for _ in itertools.count():
                if not os.read(self._drain, POSITION.size * MAX_PENDING):
                    return
        except BlockingIOError:
            return


def _sample_error(name: str, position: int, kind: str, message: str) -> SampleError:
    what = message if kind in ("ValueError", "OSError", "SampleError") else f"{kind}: {message}"
    return SampleError(f"sample {name} (position {position}): {what}")
