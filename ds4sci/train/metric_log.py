"""What a run says about itself in numbers: the lines of ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds4sci.files.atomic_files import replace_text


class MetricLog:
    """``metrics.jsonl``: one JSON object a line, of kind ``train``, ``eval`` or ``event``; rank 0 writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line. Numbers that JSON has not (NaN, ±∞) become their names as strings."""
        line = {"kind": kind, "step": step} | values
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(to_plain(line)) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which a resumed run writes again, and a torn last line."""
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


def to_plain(value: Any) -> Any:
    """``value`` with tensors and NumPy scalars as Python's, and non-finite floats as strings."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far, in MB: on the GPU where it trains there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


@dataclass
class Throughput:
    """What a rank has computed since the last line of metrics: real tokens, FLOP; ``peak``: FLOP/s of its device, the
    best of ``measured`` measurements."""

    peak: float | None = None
    measured: int = 0
    tokens: int = 0
    flops: float = 0.0

    def add(self, tokens: int, flops: float) -> None:
        """Take in one micro-batch."""
        self.tokens += tokens
        self.flops += flops

    def reset(self) -> Throughput:
        """The sums so far; they begin anew."""
        sums = Throughput(self.peak, self.measured, self.tokens, self.flops)
        self.tokens, self.flops = 0, 0.0
        return sums

    @staticmethod
    def rates(parts: list[Throughput], seconds: float) -> dict[str, float]:
        """``tokens_per_second``, ``flops_per_second`` and ``utilization``, the share of what all devices could do."""
        tokens, flops = sum(p.tokens for p in parts), sum(p.flops for p in parts)
        if not tokens:
            return {}
        found = {"tokens_per_second": tokens / seconds, "flops_per_second": flops / seconds}
        if all(p.peak for p in parts):
            found["utilization"] = flops / seconds / sum(p.peak or 0.0 for p in parts)
        return found


class LossSums:
    """Running sums of a rank's losses since the last line of metrics; kept in the checkpoint, so that the lines of a
    resumed run are those of an uninterrupted one.

    A line holds the mean over steps of what each step's loss was over all its micro-batches and ranks: every
    micro-batch counts by its share of the step."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, values: dict[str, float], share: float, *, parts: int = 1) -> None:
        """Take in one micro-batch, ``share`` of its step; a term need not be in every one.

        parts  ranks that share its rows: ``values`` are then this rank's part, and add up to the micro-batch's
        """
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + share * value
            self.counts[name] = self.counts.get(name, 0.0) + share / parts

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {"totals": self.totals, "counts": self.counts}

    def restore(self, states: list[dict[str, Any]], rank: int, world_size: int) -> None:
        """Take up where the ranks left that saved ``states``; with another number of ranks the first takes all."""
        mine = states[rank : rank + 1] if len(states) == world_size else states if rank == 0 else []
        self.totals, self.counts = {}, {}
        for state in mine:
            for own, kept in ((self.totals, state["totals"]), (self.counts, state["counts"])):
                for name, value in kept.items():
                    own[name] = own.get(name, 0.0) + value

    @staticmethod
    def mean(parts: list[LossSums]) -> dict[str, float]:
        """Means over what the ranks took in that had the term, keyed in a fixed order; no term without any count."""
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part.totals):
            count = sum(part.counts.get(name, 0.0) for part in parts)
            if count:
                found[name] = sum(part.totals.get(name, 0.0) for part in parts) / count
        return found
