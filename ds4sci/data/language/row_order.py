"""Order of the rows of a run: shuffled epochs of fixed rows, or epochs of pruned documents.

A position counts rows from the begin of a phase; its row depends on the seed and, with pruning, on recorded losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ds4sci.data.language.packing import ORDER_STREAM, PACKING_STREAM, Rows, pack
from ds4sci.data.loader import make_rng, shuffled_index
from ds4sci.data.pruning import MIN_EPOCHS, PruningConfig, prune
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
class _Epoch:
    """Rows of the documents that an epoch keeps.

    number     of the epoch
    first      its first position
    documents  int64, the documents among all, ascending
    weights    float64, their weights
    rows       the documents packed; ``order[i]`` is the place in ``documents`` of document i of the rows
    scale      tokens of the kept documents / tokens of all: with it the mean over a step has the expectation of the
               mean over all documents
    shuffled   int64, the row at each position
    """

    number: int
    first: int
    documents: np.ndarray
    weights: np.ndarray
    rows: Rows
    order: np.ndarray
    scale: float
    shuffled: np.ndarray


class PrunedRows:
    """Epochs of the documents that pruning keeps, packed again for each epoch.

    The losses are those of samples (``Rows.region``). A new epoch begins with its first position: by then the losses of
    all earlier steps must be recorded, so that rows may not be prepared in advance.
    """

    def __init__(
        self, rows: Rows, row_tokens: int | None, seed: int, config: PruningConfig, record: SampleRecord, *,
        positions: int, span: int = 1,
    ) -> None:  # fmt: skip
        """Raises ValueError for too few epochs.

        positions  rows that the run reads
        span       most rows that are read before their weights are asked for
        """
        epochs = positions / len(rows)
        if epochs < MIN_EPOCHS:
            raise ValueError(
                f"data.pruning: the run has {epochs:.1f} epochs of {len(rows)} rows, and pruning needs at least "
                f"{MIN_EPOCHS}; increase train.steps, or remove [data.pruning]"
            )
        self.rows, self.row_tokens, self.seed, self.config, self.record = rows, row_tokens, seed, config, record
        self.factors: np.ndarray | None = None
        self._span = span
        self._full_from = positions * (1 - config.last)
        everything = np.arange(len(rows.tokens))
        self._epochs = [self._make(0, 0, everything, np.ones(len(everything)))]

    def row(self, position: int) -> tuple[Rows, int]:
        """See ``RowOrder``. Begins the next epoch, which all ranks do together, if its first position comes."""
        while position >= (newest := self._epochs[-1]).first + len(newest.rows):
            used = [one for one in self._epochs if one.first + len(one.rows) > position - self._span]
            self._epochs = [*used, self._next(newest)]
        epoch = next(one for one in reversed(self._epochs) if one.first <= position)
        return epoch.rows, int(epoch.shuffled[position - epoch.first])

    def weight(self, rows: Rows, document: int) -> float:
        """See ``RowOrder``."""
        epoch = next(one for one in self._epochs if one.rows is rows)
        factor = 1.0 if self.factors is None else float(self.factors[rows.region[document]])
        return float(epoch.weights[epoch.order[document]]) * epoch.scale * factor

    def _next(self, last: _Epoch) -> _Epoch:
        number, first = last.number + 1, last.first + len(last.rows)
        losses = self.record.merge().loss
        kept, weights = prune(self.config, losses, self.seed, number)
        of_sample = np.zeros(len(losses))
        of_sample[kept] = weights
        of_document = of_sample[self.rows.region]
        documents = np.flatnonzero(of_document)
        epoch = self._make(number, first, documents, of_document[documents])
        if first + len(epoch.rows) <= self._full_from:
            return epoch
        everything = np.arange(len(of_document))  # the epoch would reach into the last part
        return self._make(number, first, everything, np.ones(len(everything)))

    def _make(self, number: int, first: int, documents: np.ndarray, weights: np.ndarray) -> _Epoch:
        tokens = self.rows.tokens[documents]
        if self.row_tokens is None:
            order, offsets = np.arange(len(documents)), np.arange(len(documents) + 1)
        else:
            order, offsets = pack(tokens, self.row_tokens, make_rng(self.seed, PACKING_STREAM, number))
        chosen = documents[order]
        names = ("record", "start", "stop", "region_start", "region_stop", "tokens", "region")
        changed: dict[str, Any] = {name: getattr(self.rows, name)[chosen] for name in names}
        rows = replace(self.rows, row_offsets=offsets.astype(np.int64), **changed)
        scale = float(tokens.sum() / self.rows.tokens.sum())
        shuffled = make_rng(self.seed, ORDER_STREAM, number).permutation(len(rows))
        return _Epoch(number, first, documents, weights, rows, order, scale, shuffled)

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs besides the record of losses: the newest epoch."""
        epoch = self._epochs[-1]
        return {
            "documents": epoch.documents, "weights": epoch.weights, "epoch": np.array([epoch.number, epoch.first]),
        }  # fmt: skip

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore what ``state`` returned."""
        number, first = (int(x) for x in state["epoch"])
        self._epochs = [self._make(number, first, state["documents"], state["weights"])]
