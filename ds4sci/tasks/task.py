"""The base class of tasks and the weight of a batch in the loss of its step.

The loss of an optimizer step is one mean over all examples of the step: all micro-batches on all ranks.
``Task.loss`` returns the mean over one micro-batch, and ``Task.weight`` returns the denominator of that mean. The
trainer combines the micro-batches. Loss and gradient are then independent of how a batch is split into ranks,
micro-batches and accumulation steps, provided that ``loss`` is a mean of independent terms: one per token, or one per
sample, where the term of a sample may be a mean over its own residues. A ratio of sums over several samples is not such
a mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds4sci.data.sample_order import UNRECORDED, Delivery
from ds4sci.tasks.evaluations import Evaluation, held_out_evaluation

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ds4sci.data.language.windows import Coverage

ASSETS_DIR = "model"
"""Subfolder of a run folder into which ``Task.save_assets`` writes."""


class Task(ABC):
    """Data, model, loss, metric and evaluations of one kind of training. The training loop uses nothing else.

    Subclasses set ``model`` and ``target`` and implement the four abstract methods. The other methods have defaults.
    """

    model: nn.Module
    """Called by the engine as ``model(batch)``; the result is passed to ``loss``. A module that cannot be trained with
    ZeRO stage 3 has the attribute ``why_not_zero3``: the reason, as text."""

    target: str
    """Key of the result of ``summarize`` by which the best checkpoint is chosen; higher is better."""

    shares_random_state: bool = False
    """Whether the ranks that share an example draw the same random numbers. False: the parts of the ranks are different
    tokens, whose dropout is independent. True: every rank draws the numbers of the whole example and uses those of its
    part, so that dropout does not depend on the number of ranks."""

    delivery: Delivery = UNRECORDED
    """Where a run records the samples that it uses; set by the trainer before ``batches``."""

    gather: Callable[[Any], list[Any]] = staticmethod(lambda value: [value])
    """Returns the values of all ranks, on every rank; set by the trainer before ``batches``."""

    @property
    def reorders_samples(self) -> bool:
        """Whether the samples of a step depend on which are ready first (``data.order = "ready"``).

        The ranks that compute a sample together would then disagree, so that the trainer refuses to start them. The
        default returns False.
        """
        return False

    @abstractmethod
    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[Any]:
        """Yield the micro-batches of this rank from ``start_step`` on, ``accumulation_steps`` per step, without end.

        The stream is a pure function of (seed, step): neither the world size nor the number of workers changes which
        samples a step contains. Micro-batch m of a step consists of samples m · micro_batch_size and following; it is
        the (m // world_size)-th micro-batch of rank m mod world_size. The trainer fetches all micro-batches of a step
        before it uses the first. A batch has ``ids`` (one per sample, unless the task overrides ``weight``), ``step``
        and ``to(device)``.

        Exception: with ``reorders_samples``, a step contains the samples that were ready. A sample itself is still a
        pure function of (seed, position), and each position is used exactly once: the stream is what ``delivery`` has
        not recorded before ``start_step``, on any number of ranks. See ``ds4sci.data.sample_order``.
        """

    @abstractmethod
    def loss(self, output: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and its named, detached, unweighted terms.

        All are means over what ``weight`` counts. Under sequence parallelism, each rank returns its part of these
        means: their sum over the ranks of the group is the mean. Before the model is called, the global random
        generators are seeded from (seed, step, index of the micro-batch in the step over all ranks).
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        """Score ``model`` on this rank's shard of the held-out data. Return one row of plain values per example.

        Every rank must call ``model`` equally often, because ZeRO-3 gathers parameters collectively.
        """

    @abstractmethod
    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return means over the rows of all ranks, keyed by metric; ``target`` is one of the keys."""

    def weight(self, batch: Any) -> float:
        """Return the denominator of the mean that ``loss`` computes for ``batch``, a batch on the host.

        A finite number ≥ 0, such as the number of tokens to predict. The default counts samples: ``len(batch.ids)``.
        """
        return float(len(batch.ids))

    def work(self, batch: Any) -> tuple[float, float] | None:
        """Return (real tokens, FLOP of a training step) of ``batch`` for the throughput log.

        The default returns None: nothing is logged.
        """
        return None

    def data_state(self) -> dict[str, np.ndarray]:
        """Return what the order of the samples depends on besides seed and step; a checkpoint holds it.

        Every rank calls this at the same step; the result is the same on all ranks. The default returns nothing.
        """
        return {}

    def recorded_scores(self) -> dict[str, np.ndarray]:
        """Return score → value of every training sample, as recorded in ``loss``; called after ``data_state``.

        The trainer writes them to RUN/scores.npz with the names of ``SampleScoring``. The default returns nothing.
        """
        return {}

    def restore_data_state(self, state: dict[str, np.ndarray]) -> None:  # noqa: B027 (an optional hook)
        """Restore what ``data_state`` returned, before ``batches``. The default does nothing."""

    def fixed_inputs(self) -> dict[str, str]:
        """Return key → value of what must not change between the start of a run and a resume, besides its settings.

        An example is the checksum of a file that decides the order of the samples. The default returns nothing.
        """
        return {}

    def train_samples(self) -> int | None:
        """Return the number of different training samples, for the log of a benchmark.

        The default returns None: samples are generated without end, or their number is unknown.
        """
        return None

    def coverage(self) -> dict[str, Coverage]:
        """Return, by part of the data, how many residues are used and why others are excluded.

        The trainer logs the result when a run starts. The default is empty.
        """
        return {}

    def save_assets(self, folder: Path) -> None:  # noqa: B027 (an optional hook, not an abstract method)
        """Write into ``folder`` (RUN/``ASSETS_DIR``) the files without which the run cannot be loaded elsewhere.

        Examples are the configuration of a model from the Hugging Face hub and its tokenizer. The ``asset_overrides``
        function of the task module tells the loader about them. The default writes nothing.
        """

    def evaluations(self) -> dict[str, Evaluation]:
        """Return the evaluations of ``ds4sci eval`` by name.

        No two evaluations may require the same inputs, because the inputs on the command line select the evaluation.
        The default offers ``held_out``, which requires no input: ``evaluate`` and ``summarize`` on the held-out data.
        """
        return {"held_out": held_out_evaluation(self)}


def batch_weight(task: Task, batch: Any) -> float:
    """Return ``task.weight(batch)``. Raises ValueError for a negative or non-finite weight."""
    weight = float(task.weight(batch))
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"step {batch.step}: the weight of a batch must be finite and at least 0; Task.weight returned {weight} "
            f"for {', '.join(batch.ids[:4])}"
        )
    return weight
