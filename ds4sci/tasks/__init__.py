"""What can be trained. The folder is the registry: ``task.name = "fold"`` is the module ``ds4sci.tasks.fold``.

A task module exposes ``Config`` (a pydantic model whose fields are the TOML sections that the task owns, such as
``model``, ``data`` and ``loss``) and ``build(config, *, seed, steps) -> Task``. A dotted ``task.name``
(``my_lab.tasks.x``) is imported as given, so nobody has to fork to add one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


KEPT = "model"
"""Folder of a run into which ``Task.keep`` writes."""


class Task(Protocol):
    """Data, model, loss, metric and target of one kind of training; the loop in ``ds4sci.train`` knows nothing else."""

    model: nn.Module
    """Called by the engine as ``model(batch)``; its result goes to ``loss``."""

    target: str
    """Key of ``summarize``'s result that says which checkpoint is the best (higher is better)."""

    # Optional, found by name:
    #   share(group)      spread every row over the ranks of a group (``parallel.sequence``)
    #   work(batch)       (real tokens, FLOP) of a micro-batch, for the speed in the log
    #   keep(folder)      write what a run must have to be read anywhere; the module's ``kept_by(run)`` gives overrides
    #   pretrained()      (model, tokenizer) of Hugging Face, for ``ds4sci export``

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[Any]:
        """This rank's micro-batches from ``start_step`` on, ``accumulation_steps`` of them for each step, without end.

        A pure function of (seed, step): neither world size nor worker count changes which samples a step sees.
        Each batch has ``ids``, ``step`` and ``to(device)``.
        """

    def loss(self, output: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and its named, detached, unweighted terms."""

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        """Score ``model`` on this rank's share of the held-out data: a row of plain values for each example.

        Every rank calls ``model`` equally often (ZeRO-3 gathers parameters collectively).
        """

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Means over the rows of all ranks, keyed by metric."""
