"""Order of the rows of a run: shuffled epochs of fixed rows, or epochs of pruned documents.

A position counts rows from the begin of a phase; its row depends on the seed and, with pruning, on recorded losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ds4sci.data.language.packing import ORDER_STREAM, PACKING_STREAM, Rows, pack
from ds4sci.data.loader import make_rng, shuffled_index
from ds4sci.data.pruning import PrunedEpochs, PruningConfig
from ds4sci.data.sample_record import SampleRecord


class RowOrder(Protocol):
    """Order of the rows of a phase."""

    def row(self, position: int) -> tuple[Rows, int]:
        """The rows of the epoch, and the number of the row at a position. Positions never go back by a step."""

    def weight(self, rows: Rows, document: int) -> float:
        """Factor of the losses of a document of these rows."""


@dataclass(frozen=True)
class ShuffledRows:
    """One shuffled epoch of all rows after another.

    factors  float64, factor of the losses of each sample (``Rows.region``), or None
    """

    rows: Rows
    seed: int
    factors: np.ndarray | None = None

    def row(self, position: int) -> tuple[Rows, int]:
        """See ``RowOrder``."""
        return self.rows, shuffled_index(self.seed, position, len(self.rows))

    def weight(self, rows: Rows, document: int) -> float:
        """See ``RowOrder``."""
        return 1.0 if self.factors is None else float(self.factors[rows.region[document]])


@dataclass(frozen=True)
class _EpochRows:
    """Rows of the documents of an epoch.

    rows      the documents packed; ``order[i]`` is the place among those of the epoch of document i of the rows
    shuffled  int64, the row at each position
    """

    rows: Rows
    order: np.ndarray
    shuffled: np.ndarray


class PrunedRows:
    """Epochs of the documents that pruning keeps, packed again for each epoch. The losses are those of samples
    (``Rows.region``)."""

    def __init__(
        self, rows: Rows, row_tokens: int | None, seed: int, config: PruningConfig, record: SampleRecord, *,
        positions: int, span: int = 1, factors: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for too few epochs.

        positions  rows that the run reads
        span       most rows that are read before their weights are asked for
        factors    float64, factor of the losses of each sample, or None
        """
        self.rows, self.row_tokens, self.seed = rows, row_tokens, seed
        self.epochs = PrunedEpochs(
            rows.region, rows.tokens, self._pack, seed=seed, config=config, record=record, positions=positions,
            span=span, factors=factors, unit="rows",
        )  # fmt: skip

    def row(self, position: int) -> tuple[Rows, int]:
        """See ``RowOrder``."""
        epoch = self.epochs.at(position)
        return epoch.content.rows, int(epoch.content.shuffled[position - epoch.first])

    def weight(self, rows: Rows, document: int) -> float:
        """See ``RowOrder``."""
        epoch = next(one for one in self.epochs.open if one.content.rows is rows)
        return self.epochs.weight(epoch, int(epoch.content.order[document]))

    def _pack(self, number: int, documents: np.ndarray) -> tuple[_EpochRows, int]:
        tokens = self.rows.tokens[documents]
        if self.row_tokens is None:
            order, offsets = np.arange(len(documents)), np.arange(len(documents) + 1)
        else:
            order, offsets = pack(tokens, self.row_tokens, make_rng(self.seed, PACKING_STREAM, number))
        chosen = documents[order]
        names = ("record", "start", "stop", "region_start", "region_stop", "tokens", "region")
        changed: dict[str, Any] = {name: getattr(self.rows, name)[chosen] for name in names}
        rows = replace(self.rows, row_offsets=offsets.astype(np.int64), **changed)
        shuffled = make_rng(self.seed, ORDER_STREAM, number).permutation(len(rows))
        return _EpochRows(rows, order, shuffled), len(rows)
