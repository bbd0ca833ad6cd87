"""Prediction targets of a language model: which tokens it predicts, what it sees, and how many residues that counts.

Each residue is predicted once, from inputs that do not contain it. If tokens do not overlap, this is BERT's masking.
Overlapping k-mers would reveal a masked one, so all tokens that contain a predicted residue are masked together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ds4sci.types import IGNORE_INDEX

_UNCHANGED, _RANDOM = 0.1, 0.1
"""Fractions of the chosen tokens that stay unchanged and that are replaced by a random token (BERT, ESM-2)."""


class TokenizedDocument(Protocol):
    """The fields of ``ds4sci.data.language.batches.Document`` that a masking policy reads."""

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

    inputs       int64, ids that the model sees
    labels       int64, target token of each position; −100 = no target
    weights      float32, loss weight of the label
    residues     int64, number of residues that the label accounts for; each residue counts at most once
    soft_masked  bool, True = the label is soft-masked in the file
    """

    inputs: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    residues: np.ndarray
    soft_masked: np.ndarray


def unlabelled_example(ids: np.ndarray) -> Example:
    """``ids`` without labels."""
    zeros = np.zeros(len(ids), np.int64)
    return Example(ids, zeros + IGNORE_INDEX, zeros.astype(np.float32), zeros, zeros.astype(bool))


def count_new_residues(start: np.ndarray, size: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """int64 [t]: number of residues of each token that no earlier token contains.

    This is what predicting the token from the earlier ones has to determine.

    start, size  first residue and number of residues of each token, ``start`` ascending where size > 0
    unknown      bool, True = ``<unk>``: it reveals no residue, and counts only residues that no other token contains
    """
    end = start + size
    known = (size > 0) & ~unknown
    unknown_residues = (size > 0) & unknown
    new = np.where(known, np.clip(end - np.maximum(start, _max_end_before(end, known)), 0, None), 0)
    if unknown_residues.any():
        edges = np.zeros(int(end.max()) + 1, np.int64)
        np.add.at(edges, start[known], 1)
        np.add.at(edges, end[known], -1)
        uncovered = np.concatenate([[0], np.cumsum(edges.cumsum() == 0)])
        low = np.minimum(np.maximum(start, _max_end_before(end, unknown_residues)), end)
        new = np.where(unknown_residues, uncovered[end] - uncovered[low], new)
    return new


def _max_end_before(end: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The largest ``end`` of the chosen tokens before each token; 0 if there is none."""
    return np.concatenate([[0], np.maximum.accumulate(np.where(chosen, end, 0))[:-1]])


@dataclass(frozen=True)
class PredictionUnits:
    """Groups of residues that are predicted together, each residue in one unit; int64 [u], in document order.

    label        index of the token that is predicted for the unit, which contains all of its residues
    first, last  indices of the first and last token that contain any of its residues; these are masked together
    residues     number of residues
    overlapping  bool: the label also contains residues of the adjacent units
    """

    label: np.ndarray
    first: np.ndarray
    last: np.ndarray
    residues: np.ndarray
    overlapping: np.ndarray

    @classmethod
    def from_tokens(cls, start: np.ndarray, size: np.ndarray, unknown: np.ndarray) -> PredictionUnits:
        """Units of a document with these tokens (see ``count_new_residues`` for the arguments).

        Each token is a unit if tokens do not overlap. Otherwise the units are tokens that tile the residues without
        overlap, and, between and after them, the residues that these tokens leave out.
        """
        real = np.flatnonzero(size > 0)
        token_start, token_end = start[real], (start + size)[real]
        if not (token_start[1:] < token_end[:-1]).any():
            return cls(real, real, real, size[real], np.zeros(len(real), bool))
        rows = []
        known = ~unknown[real]
        known_start, known_end, known_index = token_start[known], token_end[known], real[known]
        position, number = 0, 0
        while True:
            number = int(np.searchsorted(known_start, position))
            covered = number > 0 and known_end[number - 1] > position
            if number < len(known_start) and (known_start[number] == position or not covered):
                label, position, stop = number, int(known_start[number]), int(known_end[number])
                overlapping = False
            elif covered:
                label, overlapping = number - 1, True
                stop = int(known_end[label])
                if number < len(known_start):
                    stop = int(min(known_end[label], known_start[number]))
            else:
                break
            first = np.searchsorted(token_end, position, "right")
            last = np.searchsorted(token_start, stop) - 1
            rows.append((known_index[label], real[first], real[last], stop - position, overlapping))
            position = stop
        new = count_new_residues(start, size, unknown)
        rows += [(i, i, i, new[i], False) for i in real[unknown[real] & (new[real] > 0)].tolist()]
        rows.sort(key=lambda row: (row[1], row[0]))
        table = np.array(rows, np.int64).reshape(-1, 5).T
        return cls(table[0], table[1], table[2], table[3], table[4].astype(bool))

    def token_mask(self, chosen: np.ndarray, num_tokens: int) -> np.ndarray:
        """bool [num_tokens]: the tokens that contain a residue of the ``chosen`` units."""
        edges = np.zeros(num_tokens + 1, np.int64)
        np.add.at(edges, self.first[chosen], 1)
        np.add.at(edges, self.last[chosen] + 1, -1)
        return edges.cumsum()[:-1] > 0

    def adjacent_to(self, chosen: np.ndarray) -> np.ndarray:
        """bool [u]: the units before or after a chosen one."""
        adjacent = np.zeros(len(chosen), bool)
        adjacent[1:] |= chosen[:-1]
        adjacent[:-1] |= chosen[1:]
        return adjacent


@dataclass(frozen=True)
class MaskingPolicy:
    """Choice of the tokens that a model predicts.

    mlm_probability  fraction of the residues that a masked model predicts; 0 = a causal model, the next token
    mask_id          id of the mask token
    replacement_ids  ids from which random replacements are drawn
    """

    mlm_probability: float = 0.0
    mask_id: int = -1
    replacement_ids: np.ndarray | None = None

    def apply(self, document: TokenizedDocument, rng: np.random.Generator) -> Example:
        """Inputs and labels for training: 80 % of the chosen units are masked, 10 % replaced, 10 % unchanged."""
        if document.labels is not None or not self.mlm_probability:
            return self._unmasked(document)
        units = PredictionUnits.from_tokens(document.start, document.size, document.unknown)
        chosen = rng.random(len(units.label)) < self.mlm_probability
        chosen &= ~(units.overlapping & units.adjacent_to(chosen))
        action = rng.random(len(chosen))
        assert self.replacement_ids is not None
        replacements = self.replacement_ids[rng.integers(len(self.replacement_ids), size=len(document.ids))]
        masked = units.token_mask(chosen & (action >= _UNCHANGED + _RANDOM), len(replacements))
        replaced = units.token_mask(chosen & (action < _RANDOM), len(replacements))
        inputs = np.where(masked, self.mask_id, np.where(replaced, replacements, document.ids))
        return self._labelled(document, units, chosen, inputs)

    def num_passes(self) -> int:
        """Number of passes in which every token of a document is predicted once."""
        return max(1, round(1 / self.mlm_probability)) if self.mlm_probability else 1

    def apply_pass(self, document: TokenizedDocument, pass_index: int, rng: np.random.Generator) -> Example:
        """Inputs and labels for evaluation: pass ``pass_index`` of ``num_passes()``; all its units are masked.

        A unit whose label contains residues of adjacent units is in another pass than these. With fewer than three
        passes it is not predicted.
        """
        if document.labels is not None or not self.mlm_probability:
            return self._unmasked(document)
        units = PredictionUnits.from_tokens(document.start, document.size, document.unknown)
        passes = self.num_passes()
        pass_of_unit = rng.permutation(len(units.label)) % passes
        for i in np.flatnonzero(units.overlapping).tolist():
            taken = {int(pass_of_unit[j]) for j in (i - 1, i + 1) if 0 <= j < len(pass_of_unit)}
            pass_of_unit[i] = min({0, 1, 2} - taken) if passes > 2 else -1
        chosen = pass_of_unit == pass_index
        inputs = np.where(units.token_mask(chosen, len(document.ids)), self.mask_id, document.ids)
        return self._labelled(document, units, chosen, inputs)

    def _unmasked(self, document: TokenizedDocument) -> Example:
        """The labels of the document, or the next tokens."""
        ids, soft_masked = document.ids, document.soft_masked
        if document.labels is not None:
            return Example(ids, document.labels, document.weights, document.size, soft_masked)
        new = count_new_residues(document.start, document.size, document.unknown)
        return Example(
            inputs=ids,
            labels=_shift_left(ids, IGNORE_INDEX),
            weights=_shift_left(document.weights, 0),
            residues=_shift_left(new, 0),
            soft_masked=_shift_left(soft_masked, False),
        )

    def _labelled(
        self, document: TokenizedDocument, units: PredictionUnits, chosen: np.ndarray, inputs: np.ndarray
    ) -> Example:
        labels, residues = np.full(len(inputs), IGNORE_INDEX, np.int64), np.zeros(len(inputs), np.int64)
        at = units.label[chosen]
        labels[at], residues[at] = document.ids[at], units.residues[chosen]
        return Example(inputs, labels, document.weights, residues, document.soft_masked)


def _shift_left(values: np.ndarray, last: float) -> np.ndarray:
    return np.append(values[1:], np.asarray(last, values.dtype))
