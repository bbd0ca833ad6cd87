"""Prediction targets: which tokens a language model predicts, what it sees meanwhile, and which residues that counts.

A residue is predicted once, and nothing visible holds it. With tokens side by side that is BERT's masking. Overlapping
k-mers would spell a masked one out: there all tokens that hold a predicted residue are hidden together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ds4sci.types import IGNORE_INDEX

_KEPT, _RANDOM = 0.1, 0.1
"""Shares of the chosen tokens that stay as they are and that become another letter (BERT, ESM-2)."""


class Tokens(Protocol):
    """What a policy reads of a document; see ``ds4sci.data.language.batches.Document``."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def start(self) -> np.ndarray: ...
    @property
    def size(self) -> np.ndarray: ...
    @property
    def unknown(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...
    @property
    def soft_masked(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Example:
    """Inputs and labels of one document, [t] each.

    inputs    int64, ids that the model sees
    labels    int64, the token to be predicted here; −100 = none
    weights   float32, of the label's loss
    residues  int64, residues that the label counts for: each residue of the document counts at most once
    soft_masked    bool, True = the label is soft-masked in the file
    """

    inputs: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    residues: np.ndarray
    soft_masked: np.ndarray


def unlabelled_example(ids: np.ndarray) -> Example:
    """``ids`` with nothing to predict."""
    none = np.zeros(len(ids), np.int64)
    return Example(ids, none + IGNORE_INDEX, none.astype(np.float32), none, none.astype(bool))


def count_new_residues(start: np.ndarray, size: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """int64 [t]: residues of each token that no token before it tells, which is what predicting it from those costs.

    start, size  first residue and residues of each token, ``start`` rising where size > 0
    unknown      bool, True = ``<unk>``: it tells nothing, and counts only for residues that no other token has
    """
    end = start + size
    known = (size > 0) & ~unknown
    strange = (size > 0) & unknown
    fresh = np.where(known, np.clip(end - np.maximum(start, _before(end, known)), 0, None), 0)
    if strange.any():
        edges = np.zeros(int(end.max()) + 1, np.int64)
        np.add.at(edges, start[known], 1)
        np.add.at(edges, end[known], -1)
        free = np.concatenate([[0], np.cumsum(edges.cumsum() == 0)])
        low = np.minimum(np.maximum(start, _before(end, strange)), end)
        fresh = np.where(strange, free[end] - free[low], fresh)
    return fresh


def _before(end: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The largest ``end`` of the chosen tokens before each token; 0 where there is none."""
    return np.concatenate([[0], np.maximum.accumulate(np.where(chosen, end, 0))[:-1]])


@dataclass(frozen=True)
class PredictionUnits:
    """Residues that are predicted together, each residue in one unit; int64 [u], in the order of the document.

    label        the token that is predicted for them, which holds them all
    first, last  the tokens that hold any of them, hidden together
    residues     how many they are
    inexact      bool: the label also holds residues of the units beside it
    """

    label: np.ndarray
    first: np.ndarray
    last: np.ndarray
    residues: np.ndarray
    inexact: np.ndarray

    @classmethod
    def of(cls, start: np.ndarray, size: np.ndarray, unknown: np.ndarray) -> PredictionUnits:
        """Tokens side by side are a unit each; of overlapping ones every k-th, and what lies between and behind."""
        real = np.flatnonzero(size > 0)
        begin, end = start[real], (start + size)[real]
        if not (begin[1:] < end[:-1]).any():
            return cls(real, real, real, size[real], np.zeros(len(real), bool))
        rows = []
        known = ~unknown[real]
        s, e, at = begin[known], end[known], real[known]
        position, number = 0, 0
        while True:
            number = int(np.searchsorted(s, position))
            inside = number > 0 and e[number - 1] > position
            if number < len(s) and (s[number] == position or not inside):
                label, position, stop = number, int(s[number]), int(e[number])
                inexact = False
            elif inside:
                label, inexact = number - 1, True
                stop = int(min(e[label], s[number])) if number < len(s) else int(e[label])
            else:
                break
            first, last = np.searchsorted(end, position, "right"), np.searchsorted(begin, stop) - 1
            rows.append((at[label], real[first], real[last], stop - position, inexact))
            position = stop
        fresh = count_new_residues(start, size, unknown)
        rows += [(i, i, i, fresh[i], False) for i in real[unknown[real] & (fresh[real] > 0)].tolist()]
        rows.sort(key=lambda row: (row[1], row[0]))
        table = np.array(rows, np.int64).reshape(-1, 5).T
        return cls(table[0], table[1], table[2], table[3], table[4].astype(bool))

    def tokens(self, chosen: np.ndarray, count: int) -> np.ndarray:
        """bool [count]: the tokens that hold a residue of the ``chosen`` units."""
        edges = np.zeros(count + 1, np.int64)
        np.add.at(edges, self.first[chosen], 1)
        np.add.at(edges, self.last[chosen] + 1, -1)
        return edges.cumsum()[:-1] > 0

    def beside(self, chosen: np.ndarray) -> np.ndarray:
        """bool [u]: the units beside a chosen one."""
        found = np.zeros(len(chosen), bool)
        found[1:] |= chosen[:-1]
        found[:-1] |= chosen[1:]
        return found


@dataclass(frozen=True)
class MaskingPolicy:
    """What is to be predicted.

    fraction   share of the residues that a masked model predicts; 0 = the next token, causally
    mask       id of the mask token
    residues   ids of residue tokens, which random replacements are drawn from
    """

    mlm_probability: float = 0.0
    mask_id: int = -1
    replacement_ids: np.ndarray | None = None

    def apply(self, document: Tokens, rng: np.random.Generator) -> Example:
        """Inputs and labels for training: of the units chosen 80 % are hidden, 10 % replaced, 10 % left."""
        if document.labels is not None or not self.mlm_probability:
            return self._given(document)
        units = PredictionUnits.of(document.start, document.size, document.unknown)
        chosen = rng.random(len(units.label)) < self.mlm_probability
        chosen &= ~(units.inexact & units.beside(chosen))
        how = rng.random(len(chosen))
        assert self.replacement_ids is not None
        other = self.replacement_ids[rng.integers(len(self.replacement_ids), size=len(document.ids))]
        hidden = units.tokens(chosen & (how >= _KEPT + _RANDOM), len(other))
        replaced = units.tokens(chosen & (how < _RANDOM), len(other))
        inputs = np.where(hidden, self.mask_id, np.where(replaced, other, document.ids))
        return self._labelled(document, units, chosen, inputs)

    def num_passes(self) -> int:
        """Passes in which every token of a document is predicted once."""
        return max(1, round(1 / self.mlm_probability)) if self.mlm_probability else 1

    def apply_pass(self, document: Tokens, turn: int, rng: np.random.Generator) -> Example:
        """As ``apply``, with the units parted among ``turns()`` passes: all of a pass are hidden, none replaced.

        A unit whose label holds residues of its neighbours has another pass than they; with less than three passes
        it is not predicted.
        """
        if document.labels is not None or not self.mlm_probability:
            return self._given(document)
        units, turns = PredictionUnits.of(document.start, document.size, document.unknown), self.num_passes()
        own = rng.permutation(len(units.label)) % turns
        for i in np.flatnonzero(units.inexact).tolist():
            taken = {int(own[j]) for j in (i - 1, i + 1) if 0 <= j < len(own)}
            own[i] = min({0, 1, 2} - taken) if turns > 2 else -1
        chosen = own == turn
        inputs = np.where(units.tokens(chosen, len(document.ids)), self.mask_id, document.ids)
        return self._labelled(document, units, chosen, inputs)

    def _given(self, document: Tokens) -> Example:
        """Labels of the file, or the next tokens."""
        ids = document.ids
        if document.labels is not None:
            return Example(ids, document.labels, document.weights, document.size, document.soft_masked)
        fresh = count_new_residues(document.start, document.size, document.unknown)
        return Example(
            ids,
            _next(ids, IGNORE_INDEX),
            _next(document.weights, 0),
            _next(fresh, 0),
            _next(document.soft_masked, False),
        )

    def _labelled(self, document: Tokens, units: PredictionUnits, chosen: np.ndarray, inputs: np.ndarray) -> Example:
        labels, residues = np.full(len(inputs), IGNORE_INDEX, np.int64), np.zeros(len(inputs), np.int64)
        at = units.label[chosen]
        labels[at], residues[at] = document.ids[at], units.residues[chosen]
        return Example(inputs, labels, document.weights, residues, document.soft_masked)


def _next(values: np.ndarray, last: float) -> np.ndarray:
    return np.append(values[1:], np.asarray(last, values.dtype))
