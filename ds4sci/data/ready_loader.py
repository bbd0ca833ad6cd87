"""Loader that never waits for a slow sample: batches take the samples that are ready, with bounded reordering.

Workers take the next position from one shared queue. A sample that takes long is overtaken by at most ``window``
others; after that the loader waits for it. With ``window`` = 0 the order is the one that was asked for. What a sample
contains depends on its position alone, never on the order or the worker.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ds4sci.data.sample_pools import MAX_PENDING, WorkerType, start_pool

T = TypeVar("T")

POLL_SECONDS = 0.2
"""Longest wait without a look at the stop event."""


class ReorderBuffer:
    """Samples that are ready, and the rule by which they are delivered.

    Positions are numbered in the order of ``admit``: 0, 1, 2, … The first sample that is ready is delivered if

    - it is the oldest that has not been delivered, or
    - fewer than ``window`` samples have overtaken the oldest, and both are on the same side of ``barrier``.

    No sample is overtaken by more others than the oldest one is, so that the bound holds for all.
    """

    def __init__(self, window: int, barrier: int | None = None) -> None:
        if window < 0:
            raise ValueError(f"window must be at least 0; got {window}")
        self.window, self.barrier = window, barrier
        self.admitted = self.delivered = self._oldest = 0
        self._numbers: dict[int, int] = {}
        self._ready: list[tuple[int, int]] = []
        self._samples: dict[int, Any] = {}
        self._ahead: set[int] = set()  # delivered numbers above the oldest one that is not

    @property
    def outstanding(self) -> int:
        """Number of samples admitted and not delivered."""
        return self.admitted - self.delivered

    def admit(self, position: int) -> None:
        """Append a position to the order."""
        self._numbers[position] = self.admitted
        self.admitted += 1

    def add(self, position: int, sample: Any) -> None:
        """Add a sample that is ready."""
        self._samples[position] = sample
        heapq.heappush(self._ready, (self._numbers[position], position))

    def pop(self) -> tuple[int, Any] | None:
        """Return the (position, sample) to deliver next, or None if it is not ready."""
        if not self._ready:
            return None
        number, position = self._ready[0]
        if number != self._oldest:
            overtaken = self.delivered - self._oldest
            separate = self.barrier is not None and self._oldest < self.barrier <= number
            if overtaken >= self.window or separate:
                return None
        heapq.heappop(self._ready)
        self.delivered += 1
        self._ahead.add(number)
        while self._oldest in self._ahead:
            self._ahead.remove(self._oldest)
            self._oldest += 1
        del self._numbers[position]
        return position, self._samples.pop(position)


def ready_samples(
    make: Callable[[int], T],
    order: Iterator[int],
    *,
    workers: int,
    kind: WorkerType = "thread",
    window: int = 0,
    capacity: int = 0,
    barrier: int | None = None,
    name: Callable[[int], str] = str,
    stop: threading.Event | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield (position, sample) for each distinct position of ``order``, exactly once, as the samples become ready.

    make      position → sample; its result depends on the position alone. For processes it is pickled
    workers   threads or processes (``kind``); with 0 each sample is made when it is requested
    window    most samples that overtake another one
    capacity  most samples that are in the making or ready, which bounds the memory; by default 4 per worker
    barrier   number of leading positions of ``order`` that are all delivered before any later one
    name      position → name of the sample in error messages
    stop      event after which the iteration ends

    Raises SampleError, which names the sample, if ``make`` raises or ends three worker processes.
    """
    limit = min(max(capacity or 4 * workers, workers, 1), MAX_PENDING)
    buffer = ReorderBuffer(window, barrier)
    pool = start_pool(make, workers, kind, name)
    try:
        exhausted = False
        while stop is None or not stop.is_set():
            while not exhausted and buffer.outstanding < limit:
                if (position := next(order, None)) is None:
                    exhausted = True
                else:
                    buffer.admit(position)
                    pool.submit(position)
            if not buffer.outstanding:
                return
            for result in pool.receive(0.0):
                buffer.add(*result)
            if (item := buffer.pop()) is not None:
                yield item
                continue
            for result in pool.receive(POLL_SECONDS):
                buffer.add(*result)
    finally:
        pool.close()


def in_background(source: Iterator[T], stop: threading.Event, depth: int = 1) -> Iterator[T]:
    """Yield the items of ``source``, which a thread takes up to ``depth`` items in advance.

    When the generator is closed, ``stop`` is set, and the thread ends once ``source`` has; exceptions are passed on.
    """
    items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                items.put((item, error), timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for item in source:
                if not put(item):
                    break
            else:
                put(None, StopIteration())
        except BaseException as error:
            put(None, error)
        finally:
            if hasattr(source, "close"):
                source.close()

    thread = threading.Thread(target=fill, name="ds4sci-batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only with an error
    finally:
        stop.set()
        thread.join()
