"""n-gram models of the training sequences of a run, scored on the sequences of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ds4sci.baselines.ngrams import measure_ngrams
from ds4sci.data.sequences import SequenceStore

if TYPE_CHECKING:
    from ds4sci.tasks.language_modeling import LanguageModelingTask

MAX_ORDER = {"protein": 3, "dna": 12}
"""Residues of context of the longest n-gram model, by alphabet."""


def score_ngrams(task: LanguageModelingTask, store: SequenceStore) -> dict[str, Any]:
    """Train n-gram models on the training split of ``task`` and score ``store``.

    Unknown letters are excluded if the run gives them no weight. Returns the result of ``measure_ngrams`` with
    ``excluded``: reason → residues.
    """
    reader, regions, _, _ = task.train_valid_readers()
    counts_unknown = task.config.data.unknown_weight > 0
    train_ranges = zip(regions.record.tolist(), regions.start.tolist(), regions.stop.tolist(), strict=True)
    train = [part for one in train_ranges for part in _parts(reader.store, *one, counts_unknown=counts_unknown)]
    test_ranges = [(i, 0, int(length)) for i, length in enumerate(store.lengths)]
    test = [part for one in test_ranges for part in _parts(store, *one, counts_unknown=counts_unknown)]
    known = np.unique(np.concatenate([np.unique(s) for s in train])) if train else np.zeros(0, np.uint8)
    scored = [part for s in test for part in _split(s, np.isin(s, known))]
    if not scored:
        raise ValueError(
            f"--ngrams: no residue of {store.folder if not test else store.location(0)} is a letter of the training "
            "sequences"
        )
    measured = measure_ngrams(train, scored, MAX_ORDER[store.alphabet], seed=task.seed)
    unknown = int(store.lengths.sum()) - sum(map(len, test))
    unseen = sum(map(len, test)) - sum(map(len, scored))
    excluded = {"unknown": unknown, "letters that are not in the training sequences": unseen}
    return measured | {"excluded": {reason: count for reason, count in excluded.items() if count}}


def _parts(store: SequenceStore, record: int, start: int, stop: int, *, counts_unknown: bool) -> list[np.ndarray]:
    """Residues start … stop − 1 of a record, split at unknown letters unless ``counts_unknown``."""
    letters = np.asarray(store.residues(record, start, stop))
    return _split(letters, np.ones(len(letters), bool) if counts_unknown else ~store.unknown_mask(record, start, stop))


def _split(letters: np.ndarray, keep: np.ndarray) -> list[np.ndarray]:
    """Maximal stretches of ``letters`` where ``keep`` is True."""
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    return [letters[a:b] for a, b in edges.reshape(-1, 2).tolist()]
