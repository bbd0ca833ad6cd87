"""The order of the examples: what step k sees is a function of (seed, k) alone.

Step k takes the examples k·B … k·B + B - 1 of an endless line, B = micro batch · accumulation · world. The line is one
shuffled epoch after another (each chain once an epoch). Sample j of the step draws its crop, alignment and mask from a
generator of its own, keyed by (seed, k, j); crop length and recycling are drawn once a step. So the samples of a step
stay the same, number for number, for any split of B over ranks, micro-batches and workers, and after a resume.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import count, pairwise
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.types import Batch, Record

B = TypeVar("B")

_EPOCH, _STEP, _SAMPLE = range(3)
"""Which family a generator is of: two families never share a stream."""


class CropPhase(BaseModel):
    """Crop lengths from one point of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_progress: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the run's steps that lies behind when the phase begins."""
    crops: tuple[int, ...] = Field(min_length=1)
    """Residues; each step draws one of these."""
    weights: tuple[float, ...] | None = None
    """How often each is drawn, relative to the others; all alike by default."""

    @model_validator(mode="after")
    def _fits(self) -> CropPhase:
        if min(self.crops) < 1:
            raise ValueError(f"crops must be at least 1 residue; got {self.crops}")
        if self.weights is not None and (
            len(self.weights) != len(self.crops) or min(self.weights) < 0 or sum(self.weights) <= 0
        ):
            raise ValueError(
                f"weights must be one number ≥ 0 for each of the {len(self.crops)} crops, not all 0; got {self.weights}"
            )
        return self


class Plan(BaseModel):
    """What every rank draws alike, once a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phases: tuple[CropPhase, ...] = Field(default=(CropPhase(crops=(64,)),), min_length=1)
    """Crop schedule; the first phase begins at 0 and each later one after the one before."""
    max_recycling: int = Field(default=0, ge=0)
    """Recycling passes are drawn uniformly from 0 to this (AF2: 3; Algorithm 31)."""
    pad_multiple: int = Field(default=1, ge=1)
    """Batches are padded to a multiple of this many residues; the crop length gives one constant shape."""

    @model_validator(mode="after")
    def _rises(self) -> Plan:
        starts = [phase.from_progress for phase in self.phases]
        if starts[0] != 0.0 or any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"from_progress must be 0 in the first phase and rise from phase to phase; got {starts}")
        return self

    def draw(self, seed: int, step: int, progress: float) -> tuple[int, int]:
        """(crop length, recycling passes) of a step."""
        rng = make_rng(seed, _STEP, step)
        phase = [phase for phase in self.phases if phase.from_progress <= progress][-1]
        weights = None if phase.weights is None else np.array(phase.weights) / sum(phase.weights)
        return int(rng.choice(phase.crops, p=weights)), int(rng.integers(self.max_recycling + 1))


def make_rng(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for each (seed, key)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, chains: int) -> np.ndarray:
    return make_rng(seed, _EPOCH, epoch).permutation(chains)


def shuffled_index(seed: int, position: int, chains: int) -> int:
    """Index of the chain at a position of the endless line of shuffled epochs."""
    return int(_epoch_order(seed, position // chains, chains)[position % chains])


def batches(
    chains: Sequence[Record],
    *,
    seed: int,
    start_step: int,
    steps: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    plan: Plan,
    feature_config: FeatureConfig,
    workers: int = 0,
) -> Iterator[Batch]:
    """This rank's micro-batches from ``start_step`` on, without end; ``accumulation_steps`` of them make one step.

    Sample j of step k goes to micro-batch j // (micro · world), there to rank j // micro mod world.
    ``steps`` is the length of the run: ``progress`` = step / steps, at most 1, chooses the phase of ``plan``.
    ``workers`` threads make batches ahead (numpy lets go of the interpreter lock in its larger calls); 0 makes each
    batch when it is asked for. The batches are the same for every number.

    ``ValueError`` at the call for impossible arguments, at the batch for a record that lacks its input.
    """
    if not len(chains):
        raise ValueError("there is no chain to train on: the set is empty")
    for name, value, least in (
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("steps", steps, 1),
        ("world_size", world_size, 1),
        ("micro_batch_size", micro_batch_size, 1),
        ("accumulation_steps", accumulation_steps, 1),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1} (world_size - 1); got {rank}")

    def make(step: int, accumulation: int) -> Batch:
        progress = min(step / steps, 1.0)
        crop, recycling = plan.draw(seed, step, progress)
        first = (accumulation * world_size + rank) * micro_batch_size
        base = step * micro_batch_size * accumulation_steps * world_size
        samples = []
        for j in range(first, first + micro_batch_size):
            record = chains[shuffled_index(seed, base + j, len(chains))]
            samples.append(featurize(record, feature_config, make_rng(seed, _SAMPLE, step, j), crop=crop))
        return collate(samples, recycling=recycling, step=step, progress=progress, multiple=plan.pad_multiple)

    places = ((step, accumulation) for step in count(start_step) for accumulation in range(accumulation_steps))
    if workers == 0:
        return (make(*place) for place in places)
    return prefetch(make, places, workers)


def prefetch(make: Callable[[int, int], B], places: Iterator[tuple[int, int]], workers: int) -> Iterator[B]:
    """What ``make`` gives for each place, made by ``workers`` threads ahead of its use."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ds4sci-loader")
    waiting: deque[Future[B]] = deque(pool.submit(make, *next(places)) for _ in range(2 * workers))
    try:
        while True:
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, *next(places)))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
