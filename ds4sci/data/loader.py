"""Order of the examples of a run: the examples of step k depend only on (seed, k).

Step k takes the examples k·B … k·B + B − 1 of an endless sequence, B = micro-batch size · accumulation steps · world
size. The sequence is one shuffled epoch after another, with each chain once per epoch. Sample j of a step draws its
crop, alignment and mask from its own generator, keyed by (seed, k, j). With ``resample_msa``, each recycling pass
before the last one draws alignment and mask from another, keyed by (seed, k, j, pass). Crop length and recycling are
drawn once per step. The samples of a step are therefore bit-identical for any split of B over ranks, micro-batches and
workers, and after a resume. ``data.order = "ready"`` gives up the fixed order, not the contents of a sample
(``sample_order``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, pairwise
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data.sample_order import STRICT, UNRECORDED, Delivery, OrderConfig, Share, ordered_batches
from ds4sci.data.sample_pools import WorkerType
from ds4sci.data.structures.features import FeatureConfig, PassRng, featurize
from ds4sci.types import Batch, Features, Record

B = TypeVar("B")

Schedule = Callable[[int], tuple[int, float]]
"""Position → number of the training sample, and factor of its loss."""

_EPOCH_STREAM, _STEP_STREAM, _SAMPLE_STREAM, _PASS_STREAM = range(4)
"""First key of each kind of random stream, so that two kinds never share a stream."""


class CropPhase(BaseModel):
    """Crop lengths from one point of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_progress: float = Field(default=0.0, ge=0.0, le=1.0)
    """Fraction of the run's steps after which the phase begins."""
    crops: tuple[int, ...] = Field(min_length=1)
    """Crop lengths in residues; each step draws one of them."""
    weights: tuple[float, ...] | None = None
    """Relative probability of each crop length; uniform by default."""

    @model_validator(mode="after")
    def _check_crops(self) -> CropPhase:
        if min(self.crops) < 1:
            raise ValueError(f"crops must be at least 1 residue; got {self.crops}")
        if self.weights is not None and (
            len(self.weights) != len(self.crops) or min(self.weights) < 0 or sum(self.weights) <= 0
        ):
            raise ValueError(
                f"weights must be {len(self.crops)} numbers ≥ 0, one per crop length, not all 0; got {self.weights}"
            )
        return self


class Plan(BaseModel):
    """Settings of the draws that all ranks share, once per step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phases: tuple[CropPhase, ...] = Field(default=(CropPhase(crops=(64,)),), min_length=1)
    """Crop schedule; the first phase begins at 0, and each later phase after the previous one."""
    max_recycling: int = Field(default=0, ge=0)
    """Maximum number of recycling passes, drawn uniformly from 0 to this (AF2: 3; Algorithm 31)."""
    pad_multiple: int = Field(default=1, ge=1)
    """Batches are padded to a multiple of this many residues; the crop length gives a constant shape."""

    @model_validator(mode="after")
    def _check_phases(self) -> Plan:
        starts = [phase.from_progress for phase in self.phases]
        if starts[0] != 0.0 or any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(
                f"from_progress must be 0 in the first phase and increase from phase to phase; got {starts}"
            )
        return self

    def draw(self, seed: int, step: int, progress: float) -> tuple[int, int]:
        """Draw (crop length, recycling passes) of a step."""
        rng = make_rng(seed, _STEP_STREAM, step)
        phase = [phase for phase in self.phases if phase.from_progress <= progress][-1]
        weights = None if phase.weights is None else np.array(phase.weights) / sum(phase.weights)
        return int(rng.choice(phase.crops, p=weights)), int(rng.integers(self.max_recycling + 1))


def make_rng(seed: int, *key: int) -> np.random.Generator:
    """A random generator with an independent stream for each (seed, key)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make_pass_rng(seed: int, *key: int) -> PassRng:
    """Random generators of the recycling passes of an example: independent streams for each (seed, key, pass)."""
    return partial(make_rng, seed, _PASS_STREAM, *key)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The items of a shuffled epoch, in order."""
    return make_rng(seed, _EPOCH_STREAM, epoch).permutation(size)


def shuffled_index(seed: int, position: int, size: int) -> int:
    """Index, below ``size``, of the item at a position of the endless sequence of shuffled epochs."""
    return int(epoch_order(seed, position // size, size)[position % size])


@dataclass(frozen=True)
class TrainingExamples:
    """Function from the position in the endless sequence of shuffled epochs to the features of the example there.

    step_size  examples per step: position p is sample j = p mod step_size of step k = p // step_size
    steps      length of the run
    schedule   by default shuffled epochs of all chains, with the factor 1
    any_step   whether an example may be used in another step than its own, with another number of recycling passes
    """

    chains: Sequence[Record]
    seed: int
    step_size: int
    steps: int
    plan: Plan
    feature_config: FeatureConfig
    schedule: Schedule | None = None
    any_step: bool = False

    def draw(self, step: int) -> tuple[int, int]:
        """Draw (crop length, recycling passes) of a step."""
        return self.plan.draw(self.seed, step, self.progress(step))

    def progress(self, step: int) -> float:
        """Return step / steps, at most 1."""
        return min(step / self.steps, 1.0)

    def index(self, position: int) -> int:
        """Index of the chain at a position."""
        return self._at(position)[0]

    def _at(self, position: int) -> tuple[int, float]:
        if self.schedule is None:
            return shuffled_index(self.seed, position, len(self.chains)), 1.0
        return self.schedule(position)

    def name(self, position: int) -> str:
        """Id of the chain at a position."""
        names: list[str] | None = getattr(self.chains, "ids", None)  # of a chain set, without reading the chain
        return self[position].id if names is None else names[self.index(position)]

    def __getitem__(self, position: int) -> Record:
        return self.chains[self.index(position)]

    def __call__(self, position: int) -> Features:
        step, j = divmod(position, self.step_size)
        rng = make_rng(self.seed, _SAMPLE_STREAM, step, j)
        number, factor = self._at(position)
        crop, recycling = self.draw(step)
        features = featurize(
            self.chains[number], self.feature_config, rng, crop=crop,
            earlier_passes=self.plan.max_recycling if self.any_step else recycling,
            pass_rng=make_pass_rng(self.seed, step, j),
        )  # fmt: skip
        return replace(features, sample=number, factor=factor)

    def collate(self, samples: Sequence[Features], step: int) -> Batch:
        """Make a batch of a step."""
        from ds4sci.data.structures.batch import collate  # torch, which worker processes do not need

        recycling, progress = self.draw(step)[1], self.progress(step)
        return collate(samples, recycling=recycling, step=step, progress=progress, multiple=self.plan.pad_multiple)


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
    worker_type: WorkerType = "thread",
    order: OrderConfig = STRICT,
    delivery: Delivery = UNRECORDED,
    schedule: Schedule | None = None,
) -> Iterator[Batch]:
    """Endless micro-batches of this rank from ``start_step`` on, ``accumulation_steps`` of them per step.

    Sample j of step k goes to micro-batch j // (micro · world), and in it to rank j // micro mod world. ``steps`` is
    the length of the run: ``progress`` = step / steps, at most 1, selects the phase of ``plan``. ``workers`` threads
    or processes (``worker_type``) prepare batches in advance (numpy releases the interpreter lock in large calls); with
    0, each batch is made when it is requested. The batches do not depend on ``workers``.

    With an ``order`` other than the strict one, a batch may hold examples of other steps, with the crop lengths of
    those; ``recycling`` and ``progress`` are those of the step that uses it. ``delivery`` records the order.

    ``ValueError`` at the call for invalid arguments, and at the batch for a record that lacks an input.
    """
    if not len(chains):
        raise ValueError("the chain set is empty; expected at least one chain to train on")
    for name, value, minimum in (
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("steps", steps, 1),
        ("world_size", world_size, 1),
        ("micro_batch_size", micro_batch_size, 1),
        ("accumulation_steps", accumulation_steps, 1),
        ("workers", workers, 0),
    ):
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to {world_size - 1} (world_size - 1); got {rank}")
    share = Share(start_step, rank, world_size, micro_batch_size, accumulation_steps)
    any_step = order.order != "strict" or delivery.keeps_ledger(order)
    examples = TrainingExamples(chains, seed, share.step_size, steps, plan, feature_config, schedule, any_step)
    if any_step or (workers and worker_type == "process"):
        return ordered_batches(
            examples, examples.collate, examples.name,
            config=order, share=share, delivery=delivery, workers=workers, kind=worker_type,
        )  # fmt: skip

    def make(step: int, accumulation: int) -> Batch:
        first = step * share.step_size + (accumulation * world_size + rank) * micro_batch_size
        return examples.collate([examples(p) for p in range(first, first + micro_batch_size)], step)

    micro_batches = ((step, accumulation) for step in count(start_step) for accumulation in range(accumulation_steps))
    if workers == 0:
        return (make(*indices) for indices in micro_batches)
    return prefetch(make, micro_batches, workers)


def prefetch(make: Callable[[int, int], B], indices: Iterator[tuple[int, int]], workers: int) -> Iterator[B]:
    """``make(*index)`` for each of ``indices``, in order, computed in advance by ``workers`` threads."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ds4sci-loader")
    pending: deque[Future[B]] = deque(pool.submit(make, *next(indices)) for _ in range(2 * workers))
    try:
        while True:
            batch = pending.popleft().result()
            pending.append(pool.submit(make, *next(indices)))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
