"""Efficiency, utilization, communication share and cost of measured runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds4sci.scaling.logs import ScalingLog


@dataclass(frozen=True)
class Row:
    """Figures of one mode and number of ranks; None where the log does not suffice.

    seconds        of a step
    rate           samples per second
    speed_up       relative to the smallest number of ranks of the mode
    efficiency     strong: speed-up · (smallest ranks / ranks); weak: (step time on the smallest) / (step time)
    utilization    model FLOPs without recomputation / (peak · ranks · time)
    communication  fraction of the step in collectives, waiting for slower ranks included
    memory_mb      peak memory of a rank
    node_hours     for a million samples
    spread         (slowest − fastest repeat) / median
    """

    mode: str
    ranks: int
    batch: int
    seconds: float
    rate: float
    speed_up: float
    efficiency: float
    utilization: float | None
    communication: float | None
    memory_mb: float
    node_hours: float
    spread: float
    is_oversubscribed: bool


def modes_of(logs: Sequence[ScalingLog]) -> dict[str, list[ScalingLog]]:
    """Logs by mode. Ordinary runs are strong scaling if all have one global batch, weak if all have one per rank.

    Raises ValueError for runs that have neither.
    """
    if all(one.mode != "run" for one in logs):
        found: dict[str, list[ScalingLog]] = {}
        for one in logs:
            found.setdefault(one.mode, []).append(one)
        return {mode: sorted(ones, key=lambda one: one.ranks) for mode, ones in found.items()}
    ordered = sorted(logs, key=lambda one: one.ranks)
    if len({one.batch for one in logs}) == 1:
        return {"strong": ordered}
    if len({one.batch / one.ranks for one in logs}) == 1:
        return {"weak": ordered}
    sizes = ", ".join(f"{one.file}: {one.batch} on {one.ranks} ranks" for one in ordered)
    raise ValueError(f"neither one global batch (strong scaling) nor one batch per rank (weak scaling): {sizes}")


def rows(logs: Sequence[ScalingLog]) -> list[Row]:
    """Figures of all logs, by mode and number of ranks."""
    made = []
    for mode, ones in modes_of(logs).items():
        first = ones[0]
        for one in ones:
            rate = one.batch / one.seconds
            speed_up = rate / (first.batch / first.seconds)
            medians = [sorted(r.step_seconds)[len(r.step_seconds) // 2] for r in one.repeats]
            flops = one.model_flops
            made.append(Row(
                mode, one.ranks, one.batch, one.seconds, rate, speed_up, efficiency(mode, first, one),
                flops / (one.peak * one.ranks * one.seconds) if flops and one.peak else None,
                None if one.communication is None else one.communication / one.seconds, one.memory_mb,
                node_hours(one, 1e6), (max(medians) - min(medians)) / one.seconds, one.is_oversubscribed,
            ))  # fmt: skip
    return made


def efficiency(mode: str, first: ScalingLog, one: ScalingLog) -> float:
    """Efficiency of ``one`` relative to ``first``. Strong: t₀ r₀ / (t r). Weak: t₀ / t. 1 is ideal."""
    ratio = first.seconds / one.seconds
    return ratio * first.ranks / one.ranks if mode == "strong" else ratio


def node_hours(one: ScalingLog, samples: float) -> float:
    """Node-hours for ``samples`` samples, with whole nodes."""
    nodes = -(-one.ranks // (one.ranks_per_node or one.ranks))
    return nodes * samples / one.batch * one.seconds / 3600
