"""What can be trained. The folder is the registry: ``task.name = "fold"`` is the module ``ds4sci.tasks.fold``.

The loss of a step is one mean, over everything that the step is to learn from: all its micro-batches on all ranks. A
task's ``loss`` is the mean over one micro-batch, and ``weight`` says what that mean is over: the trainer puts the
micro-batches together. How a batch is split into ranks, micro-batches and accumulation then changes neither loss
nor gradient, as long as ``loss`` is a mean of independent things: of tokens, or of samples, each a mean over its own
residues, say. Ratios of sums that run over several samples are no such mean.

A task module exposes ``Config`` (a pydantic model whose fields are the TOML sections that the task owns, such as
``model``, ``data`` and ``loss``) and ``build(config, *, seed, steps) -> Task``. A dotted ``task.name``
(``my_lab.tasks.x``) is imported as given, so nobody has to fork to add one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


ASSETS_DIR = "model"
"""Folder of a run into which ``Task.save_assets`` writes."""


class Task(Protocol):
    """Data, model, loss, metric and target of one kind of training; the loop in ``ds4sci.train`` knows nothing else."""

    model: nn.Module
    """Called by the engine as ``model(batch)``; its result goes to ``loss``."""

    target: str
    """Key of ``summarize``'s result that says which checkpoint is the best (higher is better)."""

    # Optional, found by name:
    #   weight(batch)     what the mean that ``loss`` gives is over, of a micro-batch on the host: a number ≥ 0, such as
    #                     that of tokens to predict. Without it samples count alike: len(batch.ids)
    #   set_parallel_groups(group) spread every row over the ranks of a group (``parallel.sequence``)
    #   work(batch)       (real tokens, FLOP) of a micro-batch, for the speed in the log
    #   coverage()        name of a part of the data → ``Coverage``: residues read and left out, told when a run starts
    #   save_assets(folder) write what a run must have to be read anywhere; the module's ``asset_overrides(run)`` gives
    # overrides   pretrained()      (model, tokenizer) of Hugging Face, for ``ds4sci export``

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[Any]:
        """This rank's micro-batches from ``start_step`` on, ``accumulation_steps`` of them for each step, without end.

        A pure function of (seed, step): neither world size nor worker count changes which samples a step sees.
        Micro-batch m of a step, made of its samples m · micro_batch_size and on, is the (m // world_size)-th of rank
        m mod world_size. All of a rank's micro-batches of a step are fetched before the first is used. Each has ``ids``
        (one for each sample, unless the task has ``weight``), ``step`` and ``to(device)``.
        """

    def loss(self, output: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, a mean over what ``weight`` counts, and its named, detached, unweighted terms, means
        over the same.

        Where ranks share rows (``set_parallel_groups``), each gives its part of these means: their sum over the ranks
        is the mean. Global random generators stand where (seed, step, number of the micro-batch in the step over all
        ranks) puts them before the model is called.
        """

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        """Score ``model`` on this rank's share of the held-out data: a row of plain values for each example.

        Every rank calls ``model`` equally often (ZeRO-3 gathers parameters collectively).
        """

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Means over the rows of all ranks, keyed by metric."""


def weight_of(task: Task, batch: Any) -> float:
    """What ``batch`` counts in the mean of its step: ``task.weight(batch)``, or its samples. Raises ValueError where
    that is no weight."""
    weight = float(task.weight(batch)) if hasattr(task, "weight") else float(len(batch.ids))
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"step {batch.step}: the weight of a batch must be finite and at least 0; the task gives {weight} for "
            f"{', '.join(batch.ids[:4])}"
        )
    return weight
