"""Samples that a training needs to reach its quality, as a function of the batch size.

    S(B) = S_min · (1 + B / B_crit)

S_min samples are needed with small batches; at B_crit twice as many. The steps S / B never fall below S_min / B_crit.
McCandlish, Kaplan, Amodei et al., arXiv 1812.06162, equation 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Point:
    """Runs at one batch size: ``samples`` to quality, the mean of ``runs`` runs, from ``source``."""

    batch: float
    samples: float
    runs: int = 1
    source: str = ""


@dataclass(frozen=True)
class Fit:
    """The fitted law. ``slope`` = S_min / B_crit: the least number of steps.

    errors  batch size → (predicted from the other batch sizes) / measured − 1; empty below three batch sizes
    """

    minimum: float
    slope: float
    errors: dict[float, float]

    @property
    def critical_batch(self) -> float:
        """B_crit; infinite if samples do not grow with the batch."""
        return self.minimum / self.slope if self.slope > 0 else math.inf

    @property
    def leave_one_out(self) -> float | None:
        """Largest absolute leave-one-out error, None below three batch sizes."""
        return max(map(abs, self.errors.values()), default=None) if self.errors else None

    def samples(self, batch: float) -> float:
        """Samples to quality with batch size ``batch``."""
        return self.minimum + self.slope * batch


def fit(points: Sequence[Point]) -> Fit:
    """Fit by least squares of relative errors with S_min, S_min / B_crit ≥ 0.

    Raises ValueError with fewer than two batch sizes.
    """
    sizes = sorted({one.batch for one in points})
    if len(sizes) < 2:
        raise ValueError(
            f"samples to quality are known at {len(sizes)} batch size(s); the fit needs two, its error three: train "
            "with other train_batch_size too (ds4sci bench run NAME --deepspeed_config JSON)"
        )
    errors = {}
    if len(sizes) > 2:
        for size in sizes:
            law = _solve([one for one in points if one.batch != size])
            measured = np.mean([one.samples for one in points if one.batch == size])
            errors[size] = float((law[0] + law[1] * size) / measured - 1)
    minimum, slope = _solve(points)
    return Fit(minimum, slope, errors)


def _solve(points: Sequence[Point]) -> tuple[float, float]:
    samples = np.array([one.samples for one in points], float)
    batch = np.array([one.batch for one in points], float)
    scale = batch.max()
    weight = np.sqrt([one.runs for one in points])
    matrix = np.stack([1 / samples, batch / scale / samples], 1) * weight[:, None]
    (minimum, slope), _ = nnls(matrix, weight)
    return float(minimum), float(slope / scale)


def read_points(folders: Sequence[Path]) -> list[Point]:
    """Samples to quality of the runs of ``ds4sci bench run`` in ``folders``: one point per batch size.

    A folder is that of a workload (runs/benchmarks/NAME), one or several per batch size. Runs that missed the target
    are refused by name, since leaving them out would flatter the batch size. Raises ValueError for that, and for runs
    of different benchmarks.
    """
    from ds4sci.train import checkpoint
    from ds4sci.workloads.results import benchmark_of, find_outcomes

    found: dict[int, list[float]] = {}
    names: dict[str, Path] = {}
    for folder in folders:
        for one in find_outcomes(folder):
            benchmark = benchmark_of(one.artifacts)
            assert benchmark is not None
            names.setdefault(f"{benchmark.name} {benchmark.metric} {benchmark.condition}", one.run)
            if len(names) > 1:
                first = next(iter(names.values()))
                raise ValueError(f"{one.run}: a run of another benchmark or target than {first}")
            if not one.is_reached:
                raise ValueError(
                    f"{one.run}: {one.outcome}, no samples to quality; remove it or train it to the target"
                )
            state = checkpoint.read_state(checkpoint.checkpoint_folder(one.run, one.step))
            batch = int(state["train_batch_size"])
            found.setdefault(batch, []).append(one.step * batch)
    return [Point(b, float(np.mean(s)), len(s), ", ".join(map(str, folders))) for b, s in sorted(found.items())]
