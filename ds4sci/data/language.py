"""Rows of tokens → ``LanguageBatch``: what is masked, what is predicted, what counts how much. numpy becomes torch
here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch

from ds4sci.data.loader import ahead, generator
from ds4sci.data.rows import EVALUATE, SAMPLE, Rows, row_of, window
from ds4sci.data.sequence_transform import residue_weights, reverse_complement
from ds4sci.types import IGNORED, LanguageBatch

_KEPT, _RANDOM = 0.1, 0.1
"""Shares of the chosen tokens that stay as they are and that become another letter (BERT, ESM-2)."""


@dataclass(frozen=True)
class Document:
    """One document, tokenised.

    ids      int64 [t]
    weights  float32 [t]
    marked   bool [t], True = soft-masked in the file
    special  bool [t], True = a special token: never masked
    name     RECORD:FIRST-LAST, 1-based residues
    labels   int64 [t], what each token is to be called, −100 = not known; None where tokens themselves are predicted
    """

    ids: np.ndarray
    weights: np.ndarray
    marked: np.ndarray
    special: np.ndarray
    name: str
    labels: np.ndarray | None = None


class Documents(Protocol):
    """Where documents come from."""

    def document(
        self, record: int, start: int, stop: int, tokens: int, rng: np.random.Generator | None = None
    ) -> Document:
        """Residues ``start`` … ``stop`` − 1 of a record, at most ``tokens`` tokens; ``rng`` draws the strand."""


@dataclass(frozen=True)
class Reader:
    """How residues of a store become documents.

    store               ``ds4sci.data.sequences.SequenceStore``
    coder               ``ds4sci.data.tokenizers``: ids of letters, special tokens included
    soft_weight         weight of soft-masked residues in the loss
    unknown_weight      weight of N and X
    reverse_complement  how often a window of DNA is read on the other strand
    """

    store: Any
    coder: Any
    soft_weight: float = 1.0
    unknown_weight: float = 0.0
    reverse_complement: float = 0.0

    def document(
        self, record: int, start: int, stop: int, tokens: int, rng: np.random.Generator | None = None
    ) -> Document:
        """Residues ``start`` … ``stop`` − 1 of a record, at most ``tokens`` tokens of them; ``rng`` draws the
        strand."""
        letters = self.store.residues(record, start, stop)
        soft = self.store.soft(record, start, stop)
        unknown = self.store.unknown(record, start, stop)
        strand = ""
        if rng is not None and self.reverse_complement and rng.random() < self.reverse_complement:
            letters, soft, unknown = reverse_complement(letters, soft, unknown)
            strand = "-"
        weight = residue_weights(soft, unknown, soft_weight=self.soft_weight, unknown_weight=self.unknown_weight)
        ids, place, size = (x[:tokens] for x in self.coder.encode(letters))
        special = size == 0
        return Document(
            ids,
            _over(weight, place, size, np.minimum, 1.0),
            _over(soft, place, size, np.logical_and, False),
            special,
            f"{self.store.name(record)}:{start + 1}-{stop}{strand}",
        )


def _over(values: np.ndarray, place: np.ndarray, size: np.ndarray, how: np.ufunc, special: Any) -> np.ndarray:
    """One value a token of one a residue: the least of those that the token covers; ``special`` for special tokens."""
    first = values[np.minimum(place, len(values) - 1)]
    for further in range(1, int(size.max(initial=1))):
        first = how(first, values[np.minimum(place + np.minimum(further, np.maximum(size - 1, 0)), len(values) - 1)])
    return np.where(size == 0, values.dtype.type(special), first)


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    fraction   share of the tokens that a masked model predicts; 0 = the next token, causally
    mask       id of the mask token
    residues   ids of residue tokens, which random replacements are drawn from
    """

    fraction: float = 0.0
    mask: int = -1
    residues: np.ndarray | None = None

    def apply(self, document: Document, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(inputs, labels, weights) of a document."""
        ids = document.ids
        if document.labels is not None:
            return ids, document.labels, document.weights
        if not self.fraction:
            labels = np.full(len(ids), IGNORED, np.int64)
            labels[:-1] = ids[1:]
            weights = np.zeros(len(ids), np.float32)
            weights[:-1] = document.weights[1:]
            return ids, labels, weights
        chosen = (rng.random(len(ids)) < self.fraction) & ~document.special
        how = rng.random(len(ids))
        assert self.residues is not None
        other = self.residues[rng.integers(len(self.residues), size=len(ids))]
        inputs = np.where(chosen & (how >= _KEPT + _RANDOM), self.mask, ids)
        inputs = np.where(chosen & (how < _RANDOM), other, inputs)
        return inputs, np.where(chosen, ids, IGNORED), document.weights

    def turns(self) -> int:
        """Passes in which every token of a document is predicted once."""
        return max(1, round(1 / self.fraction)) if self.fraction else 1

    def turn(
        self, document: Document, turn: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As ``apply``, with the tokens parted among ``turns()`` passes: all of a pass are masked, none replaced."""
        if not self.fraction:
            return self.apply(document, rng)
        own = rng.permutation(len(document.ids)) % self.turns() == turn
        own &= ~document.special
        return np.where(own, self.mask, document.ids), np.where(own, document.ids, IGNORED), document.weights


Example = tuple[Document, tuple[np.ndarray, np.ndarray, np.ndarray]]


def collate(rows: Sequence[Sequence[Example]], n: int, pad: int, **facts: Any) -> LanguageBatch:
    """b rows of documents, end to end, filled up to n tokens with ``pad``."""
    b = len(rows)
    inputs = np.full((b, n), pad, np.int64)
    labels = np.full((b, n), IGNORED, np.int64)
    weights = np.zeros((b, n), np.float32)
    positions = np.zeros((b, n), np.int64)
    marked = np.zeros((b, n), bool)
    spans: list[tuple[int, int]] = []
    for row, documents in enumerate(rows):
        at = 0
        for document, (given, wanted, weight) in documents:
            here = slice(at, at + len(given))
            inputs[row, here], labels[row, here], weights[row, here] = given, wanted, weight
            positions[row, here] = np.arange(len(given))
            marked[row, here] = document.marked
            spans.append((row * n + here.start, row * n + here.stop))
            at = here.stop
    weights[labels == IGNORED] = 0.0
    return LanguageBatch(
        ids=tuple(document.name for documents in rows for document, _ in documents),
        input_ids=torch.from_numpy(inputs),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        position_ids=torch.from_numpy(positions),
        spans=torch.tensor(spans, dtype=torch.int64).view(-1, 2),
        marked=torch.from_numpy(marked),
        tokens=sum(stop - start for start, stop in spans),
        **facts,
    )


@dataclass(frozen=True)
class Phase:
    """Rows that are read from ``first`` step on, padded to a multiple of ``multiple`` tokens.

    budget  tokens of every row, or None: as long as the longest of the rows that all ranks read together
    """

    first: int
    rows: Rows
    budget: int | None
    multiple: int = 1
    rope_factor: float = 1.0


def batches(
    reader: Documents,
    target: Target,
    phases: Sequence[Phase],
    *,
    seed: int,
    start_step: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    pad: int,
    workers: int = 0,
) -> Iterator[LanguageBatch]:
    """This rank's micro-batches from ``start_step`` on, without end, ``accumulation_steps`` of them a step.

    Row j of step k goes to micro-batch j // (micro · world), there to rank j // micro mod world. Which row that is, its
    windows, strands and masks are a function of (seed, k, j).
    """
    together = micro_batch_size * world_size

    def make(step: int, accumulation: int) -> LanguageBatch:
        phase = [phase for phase in phases if phase.first <= step][-1]
        base = (step - phase.first) * together * accumulation_steps + accumulation * together
        numbers = [row_of(seed, base + j, len(phase.rows)) for j in range(together)]
        n = phase.budget or max(int(phase.rows.tokens[list(phase.rows.documents(i))].sum()) for i in numbers)
        n = -(-n // phase.multiple) * phase.multiple
        own = range(rank * micro_batch_size, (rank + 1) * micro_batch_size)
        made = []
        for j in own:
            rng = generator(seed, SAMPLE, step, accumulation * together + j)
            examples = []
            for document in phase.rows.documents(numbers[j]):
                begin, end = window(phase.rows, document, rng)
                tokens = int(phase.rows.tokens[document])
                read = reader.document(int(phase.rows.record[document]), begin, end, tokens, rng)
                examples.append((read, target.apply(read, rng)))
            made.append(examples)
        return collate(made, n, pad, step=step, rope_factor=phase.rope_factor)

    places = ((step, turn) for step in count(start_step) for turn in range(accumulation_steps))
    if workers == 0:
        return (make(*place) for place in places)
    return ahead(make, places, workers)


def evaluation_batches(
    reader: Documents,
    target: Target,
    rows: Rows,
    chosen: Sequence[int],
    *,
    seed: int,
    pad: int,
    batch: int,
    budget: int | None,
    multiple: int,
    every_token: bool = False,
    rope_factor: float = 1.0,
) -> Iterator[LanguageBatch]:
    """The rows ``chosen``, ``batch`` at a time, unmoved and on their own strand; masks are drawn by the row's number.

    A masked model predicts what is behind masks alone: tokens that training leaves as they are would be told to it.

    every_token  each row ``target.turns()`` times, so that every token is predicted once; else the first of these
    """
    turns = target.turns() if every_token else 1
    for first in range(0, len(chosen), batch):
        group = chosen[first : first + batch]
        n = budget or max(int(rows.tokens[list(rows.documents(i))].sum()) for i in group)
        n = -(-n // multiple) * multiple
        for turn in range(turns):
            made = []
            for number in group:
                rng = generator(seed, EVALUATE, number)
                examples = []
                for document in rows.documents(number):
                    at = [int(x[document]) for x in (rows.record, rows.start, rows.stop, rows.tokens)]
                    read = reader.document(at[0], at[1], at[2], at[3])
                    examples.append((read, target.turn(read, turn, rng)))
                made.append(examples)
            yield collate(made, n, pad, rope_factor=rope_factor)


def marked_as_padding(batch: LanguageBatch) -> LanguageBatch:
    """``batch`` with no token to predict: what a rank computes when the others have one batch more."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORED), weights=torch.zeros_like(batch.weights))
