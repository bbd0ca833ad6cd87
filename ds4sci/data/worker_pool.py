"""A function over many arguments in processes, where a process that dies costs one argument, not the rest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


def run_each(
    function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], *, jobs: int, marks: Path
) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """Call ``function(*one)`` for each; give ``one`` back when it is done, with a sentence if it killed its process.

    With ``jobs`` of 1, or a single argument, all is done in this process. A process killed from outside or by the
    function itself (out of memory, a fault in native code) leaves its mark file in ``marks``; what was being worked on
    then is tried once more, each in a process of its own, to tell the culprit from the bystanders. Exceptions of
    ``function`` are raised.
    """
    if jobs == 1 or len(arguments) == 1:
        for one in arguments:
            function(*one)
            yield one, None
        return
    for stale in marks.glob("*.mark"):
        stale.unlink()
    waiting = dict(enumerate(arguments))
    alone: list[int] = []
    while waiting:
        workers = 1 if alone else min(jobs, len(waiting))
        batch = alone[:1] or list(waiting)
        # spawn: a fork of a process that runs torch's or BLAS's threads can hang
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            futures = {pool.submit(_marked, function, waiting[at], marks / f"{at}.mark"): at for at in batch}
            for future in as_completed(futures):
                future.result()
                at = futures[future]
                yield waiting.pop(at), None
                alone = alone[1:] if alone else alone
        except BrokenProcessPool as error:
            suspects = [at for at in batch if (marks / f"{at}.mark").exists() and at in waiting]
            for at in suspects:
                (marks / f"{at}.mark").unlink()
            if alone:
                yield waiting.pop(alone.pop(0)), "its process was killed (out of memory, or a fault in native code)"
            elif suspects:
                alone = suspects
            else:
                raise RuntimeError(
                    "worker processes cannot start; in a script, call this under `if __name__ == '__main__':`,"
                    " or use jobs=1"
                ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _marked(function: Callable[..., None], arguments: tuple[Any, ...], mark: Path) -> None:
    mark.touch()
    function(*arguments)
    mark.unlink()
