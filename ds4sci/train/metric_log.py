"""Metrics of a run: ``metrics.jsonl``, throughput and loss averages."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds4sci.files.atomic_files import replace_text
from ds4sci.files.json_values import to_plain


class MetricLog:
    """``metrics.jsonl``: one JSON object per line, of kind ``train``, ``eval`` or ``event``. Only rank 0 writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line. NaN and ±∞, which JSON lacks, are written as strings."""
        line = {"kind": kind, "step": step} | values
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(to_plain(line)) + "\n")

    def truncate_after(self, step: int) -> None:
        """Remove lines of steps after ``step``, which a resumed run writes again, and an incomplete last line."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        replace_text(self.path, "".join(kept))


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process in MB: allocated on the GPU, or resident for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


@dataclass
class Throughput:
    """Tokens and FLOP that a rank has computed since the last line of metrics.

    tokens    real tokens, without padding
    flops     floating-point operations
    peak      FLOP/s of the device, the best of ``measured`` measurements
    """

    peak: float | None = None
    measured: int = 0
    tokens: float = 0.0
    flops: float = 0.0

    def add(self, tokens: float, flops: float) -> None:
        """Add one micro-batch."""
        self.tokens += tokens
        self.flops += flops

    def reset(self) -> Throughput:
        """Return the sums so far and set them to zero."""
        sums = Throughput(self.peak, self.measured, self.tokens, self.flops)
        self.tokens, self.flops = 0.0, 0.0
        return sums

    @staticmethod
    def rates(parts: list[Throughput], seconds: float) -> dict[str, float]:
        """Return ``tokens_per_second``, ``flops_per_second`` and ``utilization``, the fraction of the peak of all
        devices."""
        tokens, flops = sum(p.tokens for p in parts), sum(p.flops for p in parts)
        if not tokens:
            return {}
        found = {"tokens_per_second": tokens / seconds, "flops_per_second": flops / seconds}
        if all(p.peak for p in parts):
            found["utilization"] = flops / seconds / sum(p.peak or 0.0 for p in parts)
        return found


class LossSums:
    """Running sums of a rank's losses since the last line of metrics.

    They are saved in checkpoints, so that a resumed run writes the same lines as an uninterrupted one. A line holds the
    mean over steps of the loss of each step, which is a mean over micro-batches and ranks: every micro-batch is
    weighted by its share of the step.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, values: dict[str, float], share: float, *, parts: int = 1) -> None:
        """Add the losses of one micro-batch, weighted by its ``share`` of the step. Terms may differ between batches.

        parts  ranks that share its rows; ``values`` are then this rank's part of the losses, which sum to the whole
        """
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + share * value
            self.counts[name] = self.counts.get(name, 0.0) + share / parts

    def state(self) -> dict[str, Any]:
        """Return the sums as JSON values for a checkpoint."""
        return {"totals": self.totals, "counts": self.counts}

    def restore(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Restore the sums that the ranks saved. If the number of ranks has changed, rank 0 takes all of them."""
        mine = states[rank : rank + 1] if len(states) == world_size else states if rank == 0 else []
        self.totals, self.counts = {}, {}
        for state in mine:
            for own, kept in ((self.totals, state["totals"]), (self.counts, state["counts"])):
                for name, value in kept.items():
                    own[name] = own.get(name, 0.0) + value

    @staticmethod
    def mean(parts: list[LossSums]) -> dict[str, float]:
        """Return the mean of each term over the micro-batches that have it, keyed in a fixed order."""
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part.totals):
            count = sum(part.counts.get(name, 0.0) for part in parts)
            if count:
                found[name] = sum(part.totals.get(name, 0.0) for part in parts) / count
        return found
