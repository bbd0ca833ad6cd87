"""Measurements as JSON with machine and commit: the source of every results table.

Methods that are compared take turns, A B A B, in one process. Figures are medians. A spread is
(largest - smallest) / median.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ds4sci.machine import provenance

FOLDER = Path("benchmarks")


@dataclass(frozen=True)
class Measurement:
    """One JSON file of ``benchmarks/``.

    name     file name without extension
    title    heading of the table
    command  command that repeats the measurement
    columns  headings of the columns
    rows     cells of each row, one per column; numbers have full precision and are rounded for display
    notes    conditions that a reader needs to interpret the figures
    machine  ``ds4sci.machine.provenance.describe()``, which includes the commit
    """

    name: str
    title: str
    command: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=provenance.describe)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    def save(self, folder: Path = FOLDER) -> Path:
        """Write ``folder/NAME.json`` and return its path."""
        path = folder / f"{self.name}.json"
        write(path, asdict(self))
        return path


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write the JSON of a benchmark. Creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def spread(values: Iterable[float]) -> float:
    """(largest - smallest) / median."""
    listed = list(values)
    return (max(listed) - min(listed)) / statistics.median(listed)


def synchronize() -> None:
    """Wait until the GPU has finished, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call, including the work that it leaves on the GPU."""
    synchronize()
    start = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - start


def time_alternately(
    actions: Mapping[str, Callable[[], object]], rounds: int, *, min_rounds: int = 5, time_budget_s: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each call, with the actions in turn: A B A B.

    After ``min_rounds`` rounds, no round begins once ``time_budget_s`` seconds have passed.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= min_rounds and time.perf_counter() - start > time_budget_s:
            break
        for name, action in actions.items():
            times[name].append(timed(action))
    return times


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum, rounded to four digits."""
    figures = (("median", statistics.median(values)), ("min", min(values)), ("max", max(values)))
    return {name: float(f"{value:.4g}") for name, value in figures}
