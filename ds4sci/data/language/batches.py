"""Rows of tokens → ``LanguageBatch``: what is masked, what is predicted, what counts how much. numpy becomes torch
here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch

from ds4sci.data.language.packing import EVALUATE, SAMPLE, Rows, window
from ds4sci.data.language.sequence_transform import residue_weights, reverse_complement
from ds4sci.data.language.targets import Example, MaskingPolicy, unlabelled_example
from ds4sci.data.loader import make_rng, prefetch, shuffled_index
from ds4sci.data.tokenizers.vocabularies import AMBIGUITY_CODES
from ds4sci.types import IGNORE_INDEX, LanguageBatch


@dataclass(frozen=True)
class Document:
    """One document, tokenised.

    ids      int64 [t]
    weights  float32 [t]
    soft_masked   bool [t], True = soft-masked in the file
    start    int64 [t], first residue of each token
    size     int64 [t], residues of each token; 0 = a special token, never masked
    unknown  bool [t], True = ``<unk>``, whatever its letters are
    name     RECORD:FIRST-LAST, 1-based residues
    labels   int64 [t], what each token is to be called, −100 = not known; None where tokens themselves are predicted
    """

    ids: np.ndarray
    weights: np.ndarray
    soft_masked: np.ndarray
    start: np.ndarray
    size: np.ndarray
    unknown: np.ndarray
    name: str
    labels: np.ndarray | None = None


class DocumentSource(Protocol):
    """Where documents come from."""

    def document(self, record: int, start: int, stop: int, rng: np.random.Generator | None = None) -> Document:
        """Residues ``start`` … ``stop`` − 1 of a record, all their tokens; ``rng`` draws the strand."""


@dataclass(frozen=True)
class DocumentReader:
    """How residues of a store become documents.

    store               ``ds4sci.data.sequences.SequenceStore``
    tokenizer               ``ds4sci.data.tokenizers``: ids of letters, special tokens included
    soft_masked_weight         weight of soft-masked residues in the loss
    unknown_weight      weight of N, X and the other codes for several bases
    reverse_complement  how often a window of DNA is read on the other strand
    """

    store: Any
    tokenizer: Any
    soft_masked_weight: float = 1.0
    unknown_weight: float = 0.0
    reverse_complement: float = 0.0

    def residues(self, record: int, start: int, stop: int) -> np.ndarray:
        """uint8 letters of residues ``start`` … ``stop`` − 1 of a record."""
        return self.store.residues(record, start, stop)

    def document(self, record: int, start: int, stop: int, rng: np.random.Generator | None = None) -> Document:
        """Residues ``start`` … ``stop`` − 1 of a record, all their tokens; ``rng`` draws the strand."""
        letters = self.store.residues(record, start, stop)
        soft = self.store.soft_mask(record, start, stop)
        unknown = self.store.unknown_mask(record, start, stop)
        if self.store.alphabet == "dna":
            unknown = unknown | _AMBIGUOUS[letters]
        strand = ""
        if rng is not None and self.reverse_complement and rng.random() < self.reverse_complement:
            letters, soft, unknown = reverse_complement(letters, soft, unknown)
            strand = "-"
        weight = residue_weights(
            soft, unknown, soft_masked_weight=self.soft_masked_weight, unknown_weight=self.unknown_weight
        )
        ids, place, size = self.tokenizer.encode(letters)
        strange = self.tokenizer.is_unknown(ids) & (size > 0)
        weights = _over(weight, place, size, np.minimum, 1.0)
        # <unk> stands for any letters: to predict it is no knowledge of them.
        return Document(
            ids,
            np.where(strange, np.float32(0.0), weights),
            _over(soft, place, size, np.logical_and, False),
            place,
            size,
            strange,
            f"{self.store.name(record)}:{start + 1}-{stop}{strand}",
        )


_AMBIGUOUS = np.isin(np.arange(256), np.frombuffer(AMBIGUITY_CODES.encode(), np.uint8))


def _over(values: np.ndarray, place: np.ndarray, size: np.ndarray, how: np.ufunc, special: Any) -> np.ndarray:
    """One value a token of one a residue: the least of those that the token covers; ``special`` for special tokens."""
    first = values[np.minimum(place, len(values) - 1)]
    for further in range(1, int(size.max(initial=1))):
        first = how(first, values[np.minimum(place + np.minimum(further, np.maximum(size - 1, 0)), len(values) - 1)])
    return np.where(size == 0, values.dtype.type(special), first)


def collate(rows: Sequence[Sequence[tuple[Document, Example]]], n: int, pad: int, **facts: Any) -> LanguageBatch:
    """b rows of documents, end to end, filled up to n tokens with ``pad``."""
    b = len(rows)
    inputs = np.full((b, n), pad, np.int64)
    labels = np.full((b, n), IGNORE_INDEX, np.int64)
    weights = np.zeros((b, n), np.float32)
    residues = np.zeros((b, n), np.int64)
    positions = np.zeros((b, n), np.int64)
    soft_masked = np.zeros((b, n), bool)
    spans: list[tuple[int, int]] = []
    for row, documents in enumerate(rows):
        at = 0
        for _, example in documents:
            here = slice(at, at + len(example.inputs))
            inputs[row, here], labels[row, here], weights[row, here] = example.inputs, example.labels, example.weights
            residues[row, here], soft_masked[row, here] = example.residues, example.soft_masked
            positions[row, here] = np.arange(here.stop - at)
            spans.append((row * n + here.start, row * n + here.stop))
            at = here.stop
    weights[labels == IGNORE_INDEX] = 0.0
    residues[labels == IGNORE_INDEX] = 0
    return LanguageBatch(
        ids=tuple(document.name for documents in rows for document, _ in documents),
        input_ids=torch.from_numpy(inputs),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        position_ids=torch.from_numpy(positions),
        doc_spans=torch.tensor(spans, dtype=torch.int64).view(-1, 2),
        soft_masked=torch.from_numpy(soft_masked),
        residues=torch.from_numpy(residues),
        tokens=sum(stop - start for start, stop in spans),
        **facts,
    )


def as_batch(
    rows: Sequence[np.ndarray], n: int, pad_id: int, name: str = "sequence", *, rope_factor: float
) -> LanguageBatch:
    """Rows of n tokens, each one document of these ids, nothing to predict; ``name`` is for errors; positions are
    divided by ``rope_factor``."""
    none = np.zeros(0, np.int64)
    made = [[(Document(ids, none, none, none, none, none, name), unlabelled_example(ids))] for ids in rows]
    return collate(made, n, pad_id, rope_factor=rope_factor)


def _read(reader: DocumentSource, rows: Rows, document: int, rng: np.random.Generator | None) -> Document:
    """A document of a row; with ``rng`` moved, and on a strand that is drawn.

    Where token boundaries depend on the letters, a moved window may have more tokens than the row has room for: then
    it is read where it was cut, where it fits. Nothing is cut off a document.
    """
    record, most = int(rows.record[document]), int(rows.tokens[document])
    if rng is not None:
        moved = reader.document(record, *window(rows, document, rng), rng)
        if len(moved.ids) <= most:
            return moved
    read = reader.document(record, int(rows.start[document]), int(rows.stop[document]), rng)
    assert len(read.ids) <= most, f"{read.name} has {len(read.ids)} tokens; its row was made for {most}"
    return read


@dataclass(frozen=True)
class TrainingPhase:
    """Rows that are read from ``first`` step on, padded to a multiple of ``multiple`` tokens.

    budget  tokens of every row, or None: as long as the longest of the rows that all ranks read together
    """

    first_step: int
    rows: Rows
    token_budget: int | None
    pad_multiple: int = 1
    rope_factor: float = 1.0


def batches(
    reader: DocumentSource,
    policy: MaskingPolicy,
    phases: Sequence[TrainingPhase],
    *,
    seed: int,
    start_step: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    pad_id: int,
    workers: int = 0,
) -> Iterator[LanguageBatch]:
    """This rank's micro-batches from ``start_step`` on, without end, ``accumulation_steps`` of them a step.

    Row j of step k goes to micro-batch j // (micro · world), there to rank j // micro mod world. Which row that is, its
    windows, strands and masks are a function of (seed, k, j).
    """
    together = micro_batch_size * world_size

    def make(step: int, accumulation: int) -> LanguageBatch:
        phase = [phase for phase in phases if phase.first_step <= step][-1]
        base = (step - phase.first_step) * together * accumulation_steps + accumulation * together
        numbers = [shuffled_index(seed, base + j, len(phase.rows)) for j in range(together)]
        n = phase.token_budget or max(int(phase.rows.tokens[list(phase.rows.documents(i))].sum()) for i in numbers)
        n = -(-n // phase.pad_multiple) * phase.pad_multiple
        own = range(rank * micro_batch_size, (rank + 1) * micro_batch_size)
        made = []
        for j in own:
            rng = make_rng(seed, SAMPLE, step, accumulation * together + j)
            examples = []
            for document in phase.rows.documents(numbers[j]):
                read = _read(reader, phase.rows, document, rng)
                examples.append((read, policy.apply(read, rng)))
            made.append(examples)
        return collate(made, n, pad_id, step=step, rope_factor=phase.rope_factor)

    places = ((step, turn) for step in count(start_step) for turn in range(accumulation_steps))
    if workers == 0:
        return (make(*place) for place in places)
    return prefetch(make, places, workers)


def evaluation_batches(
    reader: DocumentSource,
    policy: MaskingPolicy,
    rows: Rows,
    chosen: Sequence[int],
    *,
    seed: int,
    pad_id: int,
    batch_size: int,
    token_budget: int | None,
    pad_multiple: int,
    every_token: bool = False,
    rope_factor: float = 1.0,
) -> Iterator[LanguageBatch]:
    """The rows ``chosen``, ``batch`` at a time, unmoved and on their own strand; masks are drawn by the row's number.

    A masked model predicts what is behind masks alone: tokens that training leaves as they are would be told to it.

    every_token  each row ``policy.num_passes()`` times, so that every token is predicted once; else the first of these
    """
    turns = policy.num_passes() if every_token else 1
    for first in range(0, len(chosen), batch_size):
        group = chosen[first : first + batch_size]
        n = token_budget or max(int(rows.tokens[list(rows.documents(i))].sum()) for i in group)
        n = -(-n // pad_multiple) * pad_multiple
        for turn in range(turns):
            made = []
            for number in group:
                rng = make_rng(seed, EVALUATE, number)
                examples = []
                for document in rows.documents(number):
                    read = _read(reader, rows, document, None)
                    examples.append((read, policy.apply_pass(read, turn, rng)))
                made.append(examples)
            yield collate(made, n, pad_id, rope_factor=rope_factor)


def mask_all_labels(batch: LanguageBatch) -> LanguageBatch:
    """``batch`` with no token to predict: what a rank computes when the others have one batch more."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX), weights=torch.zeros_like(batch.weights))
