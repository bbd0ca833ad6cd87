"""Batches of a language model: documents read from a store, tokenized, labelled, packed into rows and collated.

numpy arrays become torch tensors here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch

from ds4sci.data.language.packing import EVALUATION_STREAM, SAMPLE_STREAM, Rows, draw_window
from ds4sci.data.language.row_order import RowOrder, ShuffledRows
from ds4sci.data.language.sequence_transform import residue_weights, reverse_complement
from ds4sci.data.language.targets import Example, MaskingPolicy, unlabelled_example
from ds4sci.data.loader import make_rng, prefetch
from ds4sci.data.tokenizers.vocabularies import AMBIGUITY_CODES
from ds4sci.types import IGNORE_INDEX, LanguageBatch


@dataclass(frozen=True)
class Document:
    """One tokenized document.

    ids          int64 [t]
    weights      float32 [t], loss weights
    soft_masked  bool [t], True = soft-masked in the file
    start        int64 [t], first residue of each token
    size         int64 [t], number of residues of each token; 0 = a special token, which is never masked
    unknown      bool [t], True = ``<unk>``
    name         RECORD:FIRST-LAST, 1-based residues
    labels       int64 [t], class of each token, −100 = unknown; None if the tokens themselves are predicted
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
    """Interface of an object that reads documents."""

    def document(self, record: int, start: int, stop: int, rng: np.random.Generator | None = None) -> Document:
        """All tokens of residues ``start`` … ``stop`` − 1 of a record; ``rng`` draws the strand."""


@dataclass(frozen=True)
class DocumentReader:
    """Reader of documents from a sequence store.

    store               ``ds4sci.data.sequences.SequenceStore``
    tokenizer           ``ds4sci.data.language.tokenizer_adapter.TokenizerAdapter``
    soft_masked_weight  loss weight of soft-masked residues
    unknown_weight      loss weight of N, X and the ambiguity codes
    reverse_complement  probability that a window of DNA is read as its reverse complement
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
        """All tokens of residues ``start`` … ``stop`` − 1 of a record; ``rng`` draws the strand."""
        letters = self.store.residues(record, start, stop)
        soft = self.store.soft_mask(record, start, stop)
        unknown = self.store.unknown_mask(record, start, stop)
        if self.store.alphabet == "dna":
            unknown = unknown | _IS_AMBIGUOUS[letters]
        strand = ""
        if rng is not None and self.reverse_complement and rng.random() < self.reverse_complement:
            letters, soft, unknown = reverse_complement(letters, soft, unknown)
            strand = "-"
        residue_weight = residue_weights(
            soft, unknown, soft_masked_weight=self.soft_masked_weight, unknown_weight=self.unknown_weight
        )
        ids, token_start, size = self.tokenizer.encode(letters)
        unknown_tokens = self.tokenizer.is_unknown(ids) & (size > 0)
        weights = _reduce_to_tokens(residue_weight, token_start, size, np.minimum, 1.0)
        # <unk> stands for any letters, so predicting it needs no knowledge of them.
        return Document(
            ids,
            np.where(unknown_tokens, np.float32(0.0), weights),
            _reduce_to_tokens(soft, token_start, size, np.logical_and, False),
            token_start,
            size,
            unknown_tokens,
            f"{self.store.name(record)}:{start + 1}-{stop}{strand}",
        )


_IS_AMBIGUOUS = np.isin(np.arange(256), np.frombuffer(AMBIGUITY_CODES.encode(), np.uint8))


def _reduce_to_tokens(
    values: np.ndarray, start: np.ndarray, size: np.ndarray, reduce: np.ufunc, special: Any
) -> np.ndarray:
    """Reduce one value per residue to one per token; special tokens get the value ``special``."""
    first = values[np.minimum(start, len(values) - 1)]
    for further in range(1, int(size.max(initial=1))):
        position = start + np.minimum(further, np.maximum(size - 1, 0))
        first = reduce(first, values[np.minimum(position, len(values) - 1)])
    return np.where(size == 0, values.dtype.type(special), first)


def collate(rows: Sequence[Sequence[tuple[Document, Example]]], n: int, pad_id: int, **fields: Any) -> LanguageBatch:
    """Concatenate the documents of each of b rows and pad them to n tokens.

    ``fields`` are further fields of the batch, such as ``step``.
    """
    b = len(rows)
    inputs = np.full((b, n), pad_id, np.int64)
    labels = np.full((b, n), IGNORE_INDEX, np.int64)
    weights = np.zeros((b, n), np.float32)
    residues = np.zeros((b, n), np.int64)
    positions = np.zeros((b, n), np.int64)
    soft_masked = np.zeros((b, n), bool)
    doc_spans: list[tuple[int, int]] = []
    for row, documents in enumerate(rows):
        start = 0
        for _, example in documents:
            span = slice(start, start + len(example.inputs))
            inputs[row, span], labels[row, span], weights[row, span] = example.inputs, example.labels, example.weights
            residues[row, span], soft_masked[row, span] = example.residues, example.soft_masked
            positions[row, span] = np.arange(span.stop - start)
            doc_spans.append((row * n + span.start, row * n + span.stop))
            start = span.stop
    weights[labels == IGNORE_INDEX] = 0.0
    residues[labels == IGNORE_INDEX] = 0
    return LanguageBatch(
        ids=tuple(document.name for documents in rows for document, _ in documents),
        input_ids=torch.from_numpy(inputs),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        position_ids=torch.from_numpy(positions),
        doc_spans=torch.tensor(doc_spans, dtype=torch.int64).view(-1, 2),
        soft_masked=torch.from_numpy(soft_masked),
        residues=torch.from_numpy(residues),
        tokens=sum(stop - start for start, stop in doc_spans),
        **fields,
    )


def as_batch(
    rows: Sequence[np.ndarray], n: int, pad_id: int, name: str = "sequence", *, rope_factor: float
) -> LanguageBatch:
    """Unlabelled batch in which each row of at most n token ids is one document.

    ``name`` is the name of the documents in error messages; positions are divided by ``rope_factor``.
    """
    none = np.zeros(0, np.int64)
    examples = [[(Document(ids, none, none, none, none, none, name), unlabelled_example(ids))] for ids in rows]
    return collate(examples, n, pad_id, rope_factor=rope_factor)


def _read_document(reader: DocumentSource, rows: Rows, document: int, rng: np.random.Generator | None) -> Document:
    """Read a document of a row; with ``rng``, from a randomly shifted window and a random strand.

    If token boundaries depend on the residues, a shifted window may have more tokens than the row has space for. It is
    then read at its original position, where it fits. A document is never truncated.
    """
    record, max_tokens = int(rows.record[document]), int(rows.tokens[document])
    if rng is not None:
        shifted = reader.document(record, *draw_window(rows, document, rng), rng)
        if len(shifted.ids) <= max_tokens:
            return shifted
    read = reader.document(record, int(rows.start[document]), int(rows.stop[document]), rng)
    assert len(read.ids) <= max_tokens, f"{read.name} has {len(read.ids)} tokens; its row has space for {max_tokens}"
    return read


@dataclass(frozen=True)
class TrainingPhase:
    """Rows that are read from step ``first_step`` on.

    token_budget  tokens of every row; None pads to the longest row that all ranks read in the same micro-batch
    pad_multiple  rows are padded to a multiple of this many tokens
    rope_factor   positions are divided by this
    order         which row is read when; by default one shuffled epoch of ``rows`` after another
    """

    first_step: int
    rows: Rows
    token_budget: int | None
    pad_multiple: int = 1
    rope_factor: float = 1.0
    order: RowOrder | None = None


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
    """Endless micro-batches of this rank from ``start_step`` on, ``accumulation_steps`` of them per step.

    Row j of step k goes to micro-batch j // (micro · world), and in it to rank j // micro mod world. The choice of the
    row, its windows, strands and masks depend only on (seed, k, j).
    """
    rows_per_micro_batch = micro_batch_size * world_size  # over all ranks

    def make(step: int, accumulation: int) -> LanguageBatch:
        phase = [phase for phase in phases if phase.first_step <= step][-1]
        base = (step - phase.first_step) * rows_per_micro_batch * accumulation_steps
        base += accumulation * rows_per_micro_batch
        order = phase.order or ShuffledRows(phase.rows, seed)
        places = [order.row(base + j) for j in range(rows_per_micro_batch)]
        n = phase.token_budget or max(int(rows.tokens[list(rows.documents(i))].sum()) for rows, i in places)
        n = -(-n // phase.pad_multiple) * phase.pad_multiple
        examples, samples, factors = [], [], []
        for j in range(rank * micro_batch_size, (rank + 1) * micro_batch_size):
            rng = make_rng(seed, SAMPLE_STREAM, step, accumulation * rows_per_micro_batch + j)
            row, (rows, index) = [], places[j]
            for document in rows.documents(index):
                read = _read_document(reader, rows, document, rng)
                row.append((read, policy.apply(read, rng)))
                samples.append(int(rows.region[document]))
                factors.append(order.weight(rows, document))
            examples.append(row)
        batch = collate(examples, n, pad_id, step=step, rope_factor=phase.rope_factor, samples=tuple(samples))
        return batch if phase.order is None else _weighted(batch, factors)

    micro_batches = ((step, accumulation) for step in count(start_step) for accumulation in range(accumulation_steps))
    if workers == 0:
        return (make(*indices) for indices in micro_batches)
    return prefetch(make, micro_batches, workers)


def _weighted(batch: LanguageBatch, factors: Sequence[float]) -> LanguageBatch:
    """Multiply the weights of the tokens of each document by its factor; the denominator of the mean stays."""
    weights = batch.weights.clone().view(-1)
    for (start, stop), factor in zip(batch.doc_spans.tolist(), factors, strict=True):
        weights[start:stop] *= factor
    total = float(batch.weights.double().sum())
    return replace(batch, weights=weights.view_as(batch.weights), total_weight=total)


def evaluation_batches(
    reader: DocumentSource,
    policy: MaskingPolicy,
    rows: Rows,
    row_indices: Sequence[int],
    *,
    seed: int,
    pad_id: int,
    batch_size: int,
    token_budget: int | None,
    pad_multiple: int,
    every_token: bool = False,
    rope_factor: float = 1.0,
) -> Iterator[LanguageBatch]:
    """Batches of the rows ``row_indices``, in order, without random shifts or strands.

    Masks depend only on the seed and the row. All predicted tokens are masked: leaving targets unmasked, as training
    does for a share of them, would leak the labels.

    every_token  yield each row ``policy.num_passes()`` times, so that every token is predicted once; otherwise only the
                 first of these passes
    """
    passes = policy.num_passes() if every_token else 1
    for first in range(0, len(row_indices), batch_size):
        group = row_indices[first : first + batch_size]
        n = token_budget or max(int(rows.tokens[list(rows.documents(i))].sum()) for i in group)
        n = -(-n // pad_multiple) * pad_multiple
        for pass_index in range(passes):
            examples = []
            for index in group:
                rng = make_rng(seed, EVALUATION_STREAM, index)
                row = []
                for document in rows.documents(index):
                    read = _read_document(reader, rows, document, None)
                    row.append((read, policy.apply_pass(read, pass_index, rng)))
                examples.append(row)
            yield collate(examples, n, pad_id, rope_factor=rope_factor)


def mask_all_labels(batch: LanguageBatch) -> LanguageBatch:
    """``batch`` without labels: what a rank computes when the other ranks have one batch more."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX), weights=torch.zeros_like(batch.weights))
