"""Process pool in which a worker crash fails one item, not the whole job."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


def run_in_processes(
    function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, jobs: int, marker_dir: Path
) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """Call ``function(*item)`` for each item of ``arguments`` in a pool of ``jobs`` processes.

    Yields ``(item, None)`` when an item is done, and ``(item, message)`` if the item killed its process. With
    ``jobs=1``, or a single item, everything runs in this process.

    Each worker keeps a marker file in ``marker_dir`` while it works on an item. If a process is killed (out of memory,
    or a fault in native code), the marked items are tried again, one process each, to find the item that caused it.
    Exceptions that ``function`` raises propagate to the caller.
    """
    if jobs == 1 or len(arguments) == 1:
        for item in arguments:
            function(*item)
            yield item, None
        return
    for stale in marker_dir.glob("*.mark"):
        stale.unlink()
    pending = dict(enumerate(arguments))
    suspects: list[int] = []
    while pending:
        workers = 1 if suspects else min(jobs, len(pending))
        batch = suspects[:1] or list(pending)
        # spawn: a fork of a process that runs torch's or BLAS's threads can hang
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            futures = {
                pool.submit(_call_with_marker, function, pending[index], marker_dir / f"{index}.mark"): index
                for index in batch
            }
            for future in as_completed(futures):
                future.result()
                index = futures[future]
                yield pending.pop(index), None
                suspects = suspects[1:] if suspects else suspects
        except BrokenProcessPool as error:
            marked = [index for index in batch if (marker_dir / f"{index}.mark").exists() and index in pending]
            for index in marked:
                (marker_dir / f"{index}.mark").unlink()
            if suspects:
                yield pending.pop(suspects.pop(0)), "its process was killed (out of memory, or a fault in native code)"
            elif marked:
                suspects = marked
            else:
                raise RuntimeError(
                    "worker processes cannot start; in a script, call this under `if __name__ == '__main__':`,"
                    " or use jobs=1"
                ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _call_with_marker(function: Callable[..., None], arguments: tuple[Any, ...], marker: Path) -> None:
    marker.touch()
    function(*arguments)
    marker.unlink()
