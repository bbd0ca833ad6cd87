"""Samples of uneven cost for tests of the loader, faults included, and a program that uses them like a run.

Worker processes import this module: it needs only numpy, so that they start quickly.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Function from a position to arrays that depend on the position alone.

    seconds   median time of a sample; times are log-normal
    slow      positions that take ``delay`` seconds
    wrong     positions that raise
    deadly    positions that kill their process
    once      folder of marker files: a deadly position kills only one process
    """

    seconds: float = 0.0
    slow: tuple[int, ...] = ()
    delay: float = 0.3
    wrong: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    once: Path | None = None

    def __call__(self, position: int) -> tuple[int, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([5, position])
        if position in self.deadly and not (self.once and (self.once / str(position)).exists()):
            if self.once:
                (self.once / str(position)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if position in self.wrong:
            raise KeyError("no atoms")
        time.sleep(self.delay if position in self.slow else float(rng.lognormal(sigma=1.5) * self.seconds))
        return position, rng.normal(size=(int(rng.integers(0, 60)), 41)), rng.integers(0, 9, size=3)


def without_pickle(position: int) -> object:
    """Return a sample that cannot be sent to another process."""
    return (position for _ in range(1))


def name(position: int) -> str:
    return f"item{position % 10}"


@dataclass(frozen=True)
class Collected:
    """A batch that keeps its samples as they are."""

    ids: tuple[str, ...]
    step: int
    samples: Sequence[tuple[int, np.ndarray, np.ndarray]]


def collate(samples: Sequence[tuple[int, np.ndarray, np.ndarray]], step: int) -> Collected:
    return Collected(tuple(name(position) for position, *_ in samples), step, samples)


def main(folder: str, rank: str, ranks: str, micro: str, accumulation: str, steps: str) -> None:
    """Use the samples of ``steps`` steps, with a checkpoint (a file that holds the step) after every second one."""
    from ds4sci.data.delivery_ledger import Ledger
    from ds4sci.data.sample_order import Delivery, OrderConfig, Share, ordered_batches

    run, last = Path(folder), int(steps)
    saved = run / "checkpoint"
    start = int(saved.read_text()) if saved.exists() else 0
    ledger = Ledger(run / "ledger")
    share = Share(start, int(rank), int(ranks), int(micro), int(accumulation))
    batches = ordered_batches(
        Samples(seconds=0.003), collate, name,
        config=OrderConfig(order="ready", window=6), share=share, delivery=Delivery(ledger, last),
        workers=2, kind="process",
    )  # fmt: skip
    for step in range(start, last):
        for _ in range(share.accumulation_steps):
            assert next(batches).step == step
        print(step, flush=True)
        if (step + 1) % 2 == 0:
            ledger.sync(share.rank)
            part = run / "checkpoint.part"
            part.write_text(str(step + 1))
            part.rename(saved)
    batches.close()
