"""Predictions of a run on a cluster: time of a step, time and cost to quality, for several numbers of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ds4sci.scaling.cluster import ClusterConfig
from ds4sci.scaling.samples_to_quality import Fit
from ds4sci.scaling.step_time import StepTime, step_time
from ds4sci.scaling.workload import Counted


@dataclass(frozen=True)
class Prediction:
    """Prediction for one number of ranks.

    efficiency   samples per second and rank relative to the first prediction
    hours        to quality; None without a law of samples to quality
    node_hours   to quality, or of a million samples without such a law
    problem      why the layout does not fit the GPUs; empty if it fits
    """

    ranks: int
    nodes: int
    batch: int
    step: StepTime
    efficiency: float
    samples: float | None
    hours: float | None
    node_hours: float
    price: float | None
    memory_gb: float
    traffic: dict[str, int]
    problem: str


def predict(counted: Sequence[Counted], cluster: ClusterConfig, law: Fit | None = None) -> list[Prediction]:
    """Predict the runs whose work is ``counted``, in order; the first is the reference of the efficiency."""
    made: list[Prediction] = []
    reference = 0.0
    for one in counted:
        work, step = one.workload, step_time(one.workload, cluster)
        rate = work.samples / step.seconds
        reference = reference or rate / work.ranks
        samples = None if law is None else law.samples(work.samples)
        nodes = cluster.nodes_of(work.ranks)
        hours = None if samples is None else samples / rate / 3600
        node_hours = nodes * (hours if hours is not None else 1e6 / rate / 3600)
        price = node_hours * cluster.price_per_node_hour if cluster.price_per_node_hour else None
        made.append(Prediction(
            work.ranks, nodes, int(work.samples), step, rate / work.ranks / reference, samples, hours, node_hours,
            price, one.memory / 2**30, one.traffic, one.problem,
        ))  # fmt: skip
    return made


COLUMNS = (
    "ranks", "batch", "step (ms)", "compute", "optimizer", "communication", "stragglers", "input", "hidden comm.",
    "utilization", "efficiency", "GB/rank", "samples/s",
)  # fmt: skip


def as_text(found: Sequence[Prediction], cluster: ClusterConfig, law: Fit | None) -> str:
    """Tables of the predictions."""
    header = [*COLUMNS, *(("hours to quality",) if law else ()), "node-hours"]
    header += ["price"] if any(one.price is not None for one in found) else []
    lines = [header]
    for one in found:
        terms = one.step.terms
        cells = [f"{one.ranks:,}", f"{one.batch:,}", f"{1e3 * one.step.seconds:,.4g}"]
        names = ("compute", "optimizer", "communication", "stragglers", "input")
        cells += [f"{terms[name] / one.step.seconds:.1%}" for name in names]
        cells += [f"{1e3 * one.step.hidden:.3g} ms", f"{one.step.utilization:.1%}", f"{one.efficiency:.1%}"]
        cells += [f"{one.memory_gb:.1f}", f"{one.batch / one.step.seconds:,.4g}"]
        cells += [f"{one.hours:.3g}"] if one.hours is not None else []
        cells += [f"{one.node_hours:,.4g}"]
        cells += [f"{one.price:,.4g}"] if one.price is not None else []
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{cluster.name}, {cluster.achievable:.0%} of the peak reached by compute"]
    text += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text.append("node-hours: " + ("to quality" if law else "for a million samples"))
    text += [f"{one.ranks:,} ranks do not fit: {one.problem}" for one in found if one.problem]
    if law is not None:
        error = law.leave_one_out
        stated = "unknown (fewer than three batch sizes)" if error is None else f"at most {error:.0%}"
        text.append(
            f"samples to quality: {law.minimum:,.0f} · (1 + B / {law.critical_batch:,.0f}); leave-one-out error "
            f"{stated}"
        )
    return "\n".join(text)


def as_json(found: Sequence[Prediction], cluster: ClusterConfig, law: Fit | None) -> dict[str, Any]:
    """The predictions as JSON values."""
    rows = [
        asdict(one) | {"seconds": one.step.seconds, "communication_share": one.step.communication_share}
        for one in found
    ]
    return {
        "cluster": cluster.model_dump(mode="json"), "predictions": rows,
        "samples_to_quality": None if law is None else asdict(law) | {"leave_one_out": law.leave_one_out},
    }  # fmt: skip
