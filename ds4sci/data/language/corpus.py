"""Sequences and the tokenizer of a language task: opened, indexed where they are not yet, parted into two sides."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds4sci.data.clustering.sequence_split import leakage, split_by_cluster, split_by_record
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter
from ds4sci.data.language.windows import ReadResidues, Regions, Windows, cut_windows
from ds4sci.data.sequences import Range, SequenceStore, index
from ds4sci.files import locks
from ds4sci.files.atomic_files import replacing
from ds4sci.files.cache import derived_path

LEAKAGE_CHECK_LIMIT = 2_000_000
"""Residues of both sides in which a run looks for relatives across them when it starts."""


@dataclass(frozen=True)
class TrainValidSplit:
    """Stores and what of them belongs to training and to evaluation."""

    train: SequenceStore
    train_regions: Regions
    valid: SequenceStore
    valid_regions: Regions


def open_store(path: Path, *, alphabet: str = "auto", bad: str = "error") -> SequenceStore:
    """The store at ``path``; a sequence file is indexed first, into ``path``.ds4sci beside it (or, where that folder
    cannot be written, in the cache), once: other processes wait.

    Raises ValueError where there is nothing, or for what ``ds4sci.data.sequences.index`` refuses.
    """
    if path.is_dir():
        return SequenceStore.open(path)
    if not path.is_file():
        raise ValueError(
            f"data.path: {path}: no such file or folder; name a FASTA file, or what `ds4sci data index` made"
        )
    out = derived_path(path, ".ds4sci", kind="sequences")
    with locks.exclusive(out.with_name(f".{out.name}.lock")):
        index([path], out, alphabet=alphabet, bad=bad, jobs=1)  # type: ignore[arg-type]
    return SequenceStore.open(out)


def open_train_valid(
    path: Path, valid: Path | None, *, alphabet: str, bad: str, fraction: float, identity: float, seed: int
) -> TrainValidSplit:
    """What is trained on and what is held out: two stores, or ``fraction`` of one.

    Proteins are parted by homology clusters (``identity``), genomes by records, a single record at its end. Which
    residues that are is kept beside the store, so that it is found once. Of relatives across two stores of
    ``LEAKAGE_CHECK_LIMIT`` residues or less there is a warning.
    """
    store = open_store(path, alphabet=alphabet, bad=bad)
    if valid is not None:
        other = open_store(valid, alphabet=alphabet, bad=bad)
        if other.alphabet != store.alphabet:
            raise ValueError(f"data.valid: {valid} has {other.alphabet} sequences, and data.path {store.alphabet} ones")
        _look_for_relatives(store, other, identity)
        return TrainValidSplit(store, _all(store), other, _all(other))
    if store.alphabet == "dna":
        train, held_out = (_regions(side) for side in split_by_record(store, fraction, seed))
    else:
        chosen = _clusters(store, path, fraction, identity, seed)
        train, held_out = (Regions.whole(store.lengths, side) for side in chosen)
    return TrainValidSplit(store, train, store, held_out)


def cut_windows_cached(
    store: SequenceStore,
    regions: Regions,
    tokenizer: TokenizerAdapter,
    letters: ReadResidues,
    *,
    document_tokens: int,
    both_strands: bool,
) -> Windows:
    """``cut_windows`` of a store, cached next to the store if the tokenizer has to be called.

    Other ranks, and later runs with the same sequences, tokenizer and length, read the cached windows.
    """
    if tokenizer.fixed_stride is not None:
        return cut_windows(regions, tokenizer, letters, document_tokens=document_tokens, both_strands=both_strands)
    told = hashlib.sha256(
        repr((store.manifest["files"], tokenizer.fingerprint(), document_tokens, both_strands)).encode()
    )
    for column in (regions.record, regions.start, regions.stop):
        told.update(column.tobytes())
    file = derived_path(store.folder, f".windows-{told.hexdigest()[:16]}.npz", kind="sequences")
    with locks.exclusive(file.with_name(f".{file.name}.lock")):
        if not file.is_file():
            made = cut_windows(regions, tokenizer, letters, document_tokens=document_tokens, both_strands=both_strands)
            _write_arrays(file, made.arrays())
    with np.load(file, allow_pickle=False) as arrays:
        return Windows.of(arrays)


def _write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a ``.npz`` atomically."""
    with replacing(file, sync=False) as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _look_for_relatives(train: SequenceStore, valid: SequenceStore, identity: float) -> None:
    """Warn of held-out sequences with relatives among those to train on, where looking takes seconds."""
    if train.total + valid.total > LEAKAGE_CHECK_LIMIT:
        warnings.warn(
            f"data.valid: {train.total + valid.total:,} residues are too many to look for relatives at every start; "
            f"`ds4sci data leakage {train.folder} {valid.folder}` does",
            stacklevel=2,
        )
    else:
        leakage(train, valid, identity if train.alphabet == "protein" else None)


def _regions(ranges: Sequence[Range]) -> Regions:
    columns = np.array([(one.record, one.start, one.stop) for one in ranges], dtype=np.int64).T
    return Regions(*columns)


def _all(store: SequenceStore) -> Regions:
    return Regions.whole(store.lengths, range(len(store)))


def _clusters(
    store: SequenceStore, path: Path, fraction: float, identity: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    told = hashlib.sha256(repr((store.lengths.tolist(), fraction, identity, seed)).encode()).hexdigest()[:16]
    file = derived_path(path, f".split-{told}.npz", kind="sequences")
    with locks.exclusive(file.with_name(f".{file.name}.lock")):
        if not file.is_file():
            train, valid = split_by_cluster(store, fraction, identity, seed)
            _write_arrays(file, {"train": train, "valid": valid})
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["train"], arrays["valid"]
