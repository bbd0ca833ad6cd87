"""Evaluation of packed rows over ranks: which rows a rank computes, forward passes, sums by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ds4sci.data.language.batches import mask_all_labels
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.types import LanguageBatch, LanguageOutput


@dataclass(frozen=True)
class RowShard:
    """The rows that a rank computes. Rows from index ``num_own`` on belong to another rank and are not counted."""

    rows: list[int]
    num_own: int


def shard_rows(chosen: list[int], rank: int, world_size: int) -> RowShard:
    """Return every ``world_size``-th row, equally many on every rank: ZeRO-3 gathers parameters collectively."""
    rounds = -(-len(chosen) // world_size)
    places = [step * world_size + rank for step in range(rounds)]
    return RowShard([chosen[min(i, len(chosen) - 1)] for i in places], sum(i < len(chosen) for i in places))


def forward_rows(
    model: nn.Module, batches: Iterable[LanguageBatch], shard: RowShard, device: torch.device, passes: int = 1
) -> Iterator[tuple[int, LanguageBatch, LanguageOutput]]:
    """Yield (row, batch, output) for the batches of ``shard``, of which each row has ``passes``.

    Rows of another rank are computed as padding, and their output is discarded.
    """
    for number, batch in enumerate(batches):
        is_own = number // passes < shard.num_own
        on_device = (batch if is_own else mask_all_labels(batch)).to(device)
        output = model(on_device)
        if is_own:
            yield shard.rows[number // passes], on_device, output


def sum_by_class(
    output: LanguageOutput, num_classes: int, group: SequenceGroup, residues: Tensor | None = None
) -> Tensor:
    """Return nats, count, correct predictions and ``residues`` of the tokens that have a label and a weight.

    fp64 [2, num_classes, 4] on the CPU, summed over all ranks of ``group``; indexed by soft-masking and label. Without
    ``residues``, every token counts as one.
    """
    keep = ((output.labels >= 0) & (output.weights > 0)).flatten().cpu()
    labels = output.labels.clamp(min=0).flatten().cpu()
    index = (output.soft_masked.flatten().cpu().long() * num_classes + labels)[keep]
    ones = torch.ones_like(output.losses)
    columns = (output.losses, ones, output.correct, ones if residues is None else residues)
    values = torch.stack([x.detach().flatten().double().cpu()[keep] for x in columns], dim=1)
    table = torch.zeros(2 * num_classes, 4, dtype=torch.float64).index_add_(0, index, values).view(2, num_classes, 4)
    return group.all_reduce_sum(table.to(output.losses.device)).cpu()


def sums_of_documents(output: LanguageOutput, batch: LanguageBatch, group: SequenceGroup) -> Tensor:
    """Return the totals of each document of ``batch`` (``ds4sci.data.sample_record.COLUMNS``): fp64 [m, 4] on the CPU,
    over all ranks of ``group``."""
    spans = batch.doc_spans
    number = torch.full((batch.weights.numel(),), len(spans), dtype=torch.int64)  # padding: one more than the last
    for document, (start, stop) in enumerate(spans.tolist()):
        number[start:stop] = document
    own = group.shard(number.view_as(batch.weights)).to(output.losses.device).flatten()
    weights = output.weights * (output.labels >= 0)
    errors = output.errors if output.errors is not None else torch.full_like(weights, float("nan"))
    columns = [weights * x.detach() for x in (output.losses, errors, output.correct)] + [weights]
    values = torch.stack([x.double().flatten() for x in columns], dim=1)
    table = values.new_zeros(len(spans) + 1, len(columns)).index_add_(0, own, values)
    return group.all_reduce_sum(table)[:-1].cpu()
