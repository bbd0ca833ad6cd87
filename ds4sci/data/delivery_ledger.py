"""Ledger of delivered samples: which samples each step of a run contained, in which order.

``RUN/ledger/rank_NNNN.jsonl`` has one line per step of the data rank NNNN:

``{"step": 3, "rank": 0, "ranks": 2, "micro_batch_size": 2, "positions": [9, 8, 13, 12], "ids": ["a", "b", "c", "d"]}``

``positions`` are those of the endless sequence of shuffled epochs (``ds4sci.data.loader``), by micro-batch. A resumed
run delivers what the ledger does not hold; with the order ``replay`` a run delivers what the ledger holds.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LedgerStep:
    """Samples of one step, over all ranks and micro-batches, in the order of the global batch."""

    step: int
    positions: tuple[int, ...]
    ids: tuple[str, ...]


class Ledger:
    """The ledger in ``folder``. The files of the ranks are read as one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self) -> bool:
        """Whether a step has been recorded."""
        return any(file.stat().st_size for file in self._files())

    def append(
        self, step: int, rank: int, ranks: int, micro_batch_size: int, positions: Sequence[int], ids: Sequence[str]
    ) -> None:
        """Record the samples of a step on one data rank."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {
            "step": step, "rank": rank, "ranks": ranks, "micro_batch_size": micro_batch_size,
            "positions": list(positions), "ids": list(ids),
        }  # fmt: skip
        with self._file(rank).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def sync(self, rank: int) -> None:
        """Write the file of ``rank`` through to the disk, before a checkpoint that relies on it."""
        try:
            descriptor = os.open(self._file(rank), os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, step: int) -> None:
        """Remove the lines of ``step`` and later ones, which a resumed run writes again, and an incomplete last
        line."""
        for file in self._files():
            keep = 0
            with file.open("rb") as handle:
                for line in handle:
                    parsed = _parse(line)
                    if parsed is None or parsed["step"] >= step:
                        break
                    keep += len(line)
            os.truncate(file, keep)

    def steps(self, end: int | None = None) -> Iterator[LedgerStep]:
        """Yield the steps, those before ``end``, in ascending order.

        Raises ValueError for a step of which the line of a rank is missing. Lines of later steps are not examined:
        another rank may be writing them.
        """
        lines = heapq.merge(*(self._lines(file, end) for file in self._files()), key=itemgetter("step", "rank"))
        expected = None
        for step, group in groupby(lines, key=itemgetter("step")):
            found = list(group)
            if expected is not None and step != expected:
                raise ValueError(f"{self.folder}: the lines of step {expected} are missing")
            expected = step + 1
            ranks = [line["rank"] for line in found]
            if ranks != list(range(found[0]["ranks"])):
                raise ValueError(
                    f"{self.folder}: step {step} has the lines of the ranks {ranks}; expected those of ranks 0 to "
                    f"{found[0]['ranks'] - 1}"
                )
            yield LedgerStep(step, _interleave(found, "positions"), _interleave(found, "ids"))

    def remaining(self, step: int, step_size: int) -> Iterator[int]:
        """Return the positions that are not delivered before ``step``, ascending and without end.

        Steps before the first one of the ledger had the strict order. Raises ValueError if the ledger is incomplete,
        names a position twice, or was written with another batch size than ``step_size``.
        """
        lowest = step * step_size
        above: set[int] = set()
        last = None
        for entry in self.steps(step):
            if last is None:
                lowest = entry.step * step_size
            last = entry.step
            if len(entry.positions) != step_size:
                raise ValueError(
                    f"{self.folder}: step {last} has {len(entry.positions)} samples; expected {step_size}, the batch "
                    "size of this run"
                )
            for position in entry.positions:
                if position < lowest or position in above:
                    raise ValueError(f"{self.folder}: step {last} has the position {position} a second time")
                above.add(position)
            while lowest in above:
                above.remove(lowest)
                lowest += 1
        if last is not None and last != step - 1:
            raise ValueError(
                f"{self.folder}: the ledger ends after step {last}, and the checkpoint is that of step {step}: it is "
                "not known which samples the steps between have used. Restore the folder from a copy of the run"
            )
        return _ascending(lowest, above)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:04d}.jsonl"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rank_*.jsonl"))

    def _lines(self, file: Path, end: int | None) -> Iterator[dict[str, Any]]:
        with file.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                parsed = _parse(line)
                if not line.endswith(b"\n") or (parsed is not None and end is not None and parsed["step"] >= end):
                    return
                if parsed is None:
                    raise ValueError(f"{file}, line {number}: not a line of a ledger: {line[:60]!r}")
                yield parsed


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
        complete = line.endswith(b"\n") and len(parsed["positions"]) == len(parsed["ids"])
        is_valid = complete and all(isinstance(parsed[key], int) for key in ("step", "rank", "ranks"))
        return parsed if is_valid and parsed["micro_batch_size"] > 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def _interleave(lines: list[dict[str, Any]], key: str) -> tuple[Any, ...]:
    """Return the values of all ranks by micro-batch: micro-batch m of the step is number m // ranks of rank m mod
    ranks."""
    size = lines[0]["micro_batch_size"]
    count = len(lines[0][key])
    return tuple(
        value for first in range(0, count, size) for line in lines for value in line[key][first : first + size]
    )


def _ascending(lowest: int, above: set[int]) -> Iterator[int]:
    position = lowest
    while True:
        if position in above:
            above.remove(position)
        else:
            yield position
        position += 1
