"""Sequence stores of a language task: opened, indexed on first use, and split into training and validation regions.

Results that take long (the index of a file, a split by clusters, the windows of a learned tokenizer) are computed once
and cached next to the sequence file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds4sci.data.clustering.sequence_split import leakage, split_by_cluster, split_by_record
from ds4sci.data.language.tokenizer_adapter import TokenizerAdapter
from ds4sci.data.language.windows import ReadResidues, Regions, Windows, cut_windows
from ds4sci.data.sequences import Range, SequenceStore, index
from ds4sci.files import locks
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replacing
from ds4sci.files.cache import derived_path

LEAKAGE_CHECK_LIMIT = 2_000_000
"""Residues in the training and validation stores together up to which a run checks for leakage when it starts."""


@dataclass(frozen=True)
class TrainValidSplit:
    """Stores of training and validation, and the regions of them that are used."""

    train: SequenceStore
    train_regions: Regions
    valid: SequenceStore
    valid_regions: Regions


def open_store(path: Path, *, alphabet: str = "auto", on_bad_record: str = "error") -> SequenceStore:
    """Open the store at ``path``; index a sequence file first.

    The index is written to ``path``.ds4sci, or to the cache if that folder is read-only. One process writes it; the
    others wait.

    Raises ValueError if there is no such file or folder, and for anything that ``ds4sci.data.sequences.index`` rejects.
    """
    if path.is_dir():
        return SequenceStore.open(path)
    if not path.is_file():
        raise ValueError(
            f"data.path: {path}: no such file or folder; expected a FASTA file, or the output of `ds4sci data index`"
        )
    out = derived_path(path, ".ds4sci", kind="sequences")
    with locks.exclusive(out.with_name(f".{out.name}.lock")):
        index([path], out, alphabet=alphabet, on_bad_record=on_bad_record, jobs=1)  # type: ignore[arg-type]
    return SequenceStore.open(out)


def open_train_valid(
    path: Path, valid: Path | None, *, alphabet: str, on_bad_record: str, fraction: float, identity: float, seed: int
) -> TrainValidSplit:
    """Training and validation sequences: the stores ``path`` and ``valid``, or a split of ``path``.

    Without ``valid``, ``fraction`` of the residues of ``path`` is held out. Proteins are split by homology clusters at
    ``identity``, genomes by records; a single record is split near its end. Two stores with ``LEAKAGE_CHECK_LIMIT``
    residues or less are checked for homologous sequences, with a warning if there are any.
    """
    store = open_store(path, alphabet=alphabet, on_bad_record=on_bad_record)
    if valid is not None:
        valid_store = open_store(valid, alphabet=alphabet, on_bad_record=on_bad_record)
        if valid_store.alphabet != store.alphabet:
            raise ValueError(
                f"data.valid: {valid} has {valid_store.alphabet} sequences, and data.path {store.alphabet} sequences; "
                "both must have one alphabet"
            )
        _warn_of_leakage(store, valid_store, identity)
        return TrainValidSplit(store, _all_regions(store), valid_store, _all_regions(valid_store))
    if store.alphabet == "dna":
        train_regions, valid_regions = (_regions(ranges) for ranges in split_by_record(store, fraction, seed))
    else:
        records = _split_by_cluster_cached(store, path, fraction, identity, seed)
        train_regions, valid_regions = (Regions.whole(store.lengths, chosen) for chosen in records)
    return TrainValidSplit(store, train_regions, store, valid_regions)


def cut_windows_cached(
    store: SequenceStore,
    regions: Regions,
    tokenizer: TokenizerAdapter,
    read_residues: ReadResidues,
    *,
    document_tokens: int,
    both_strands: bool,
) -> Windows:
    """``cut_windows`` of a store, cached next to the store if the tokenizer has to be called.

    Other ranks, and later runs with the same sequences, tokenizer and length, read the cached windows.
    """

    def compute() -> Windows:
        return cut_windows(
            regions, tokenizer, read_residues, document_tokens=document_tokens, both_strands=both_strands
        )

    if tokenizer.fixed_stride is not None:
        return compute()
    key = hashlib.sha256(
        repr((store.manifest["files"], tokenizer.fingerprint(), document_tokens, both_strands)).encode()
    )
    for column in (regions.record, regions.start, regions.stop):
        key.update(column.tobytes())
    file = derived_path(store.folder, f".windows-{key.hexdigest()[:16]}.npz", kind="sequences")
    return Windows.from_arrays(_cached_arrays(file, lambda: compute().arrays()))


def _split_by_cluster_cached(
    store: SequenceStore, path: Path, fraction: float, identity: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    key = hashlib.sha256(repr((store.lengths.tolist(), fraction, identity, seed)).encode()).hexdigest()[:16]
    file = derived_path(path, f".split-{key}.npz", kind="sequences")
    arrays = _cached_arrays(
        file, lambda: dict(zip(("train", "valid"), split_by_cluster(store, fraction, identity, seed), strict=True))
    )
    return arrays["train"], arrays["valid"]


def _cached_arrays(file: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of the ``.npz`` ``file``, which is computed if it is missing; other processes wait."""
    with locks.exclusive(file.with_name(f".{file.name}.lock")):
        if not file.is_file():
            arrays = compute()
            with replacing(file, sync=False) as handle:
                save_arrays(handle, arrays)
    with np.load(file, allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files}


def _warn_of_leakage(train: SequenceStore, valid: SequenceStore, identity: float) -> None:
    """Warn of validation sequences with homologs in the training set, if the check takes only seconds."""
    if train.total + valid.total > LEAKAGE_CHECK_LIMIT:
        warnings.warn(
            f"data.valid: {train.total + valid.total:,} residues are too many to check for homologs at every start; "
            f"run `ds4sci data leakage {train.folder} {valid.folder}` once",
            stacklevel=2,
        )
    else:
        leakage(train, valid, identity if train.alphabet == "protein" else None)


def _regions(ranges: Sequence[Range]) -> Regions:
    columns = np.array([(one.record, one.start, one.stop) for one in ranges], dtype=np.int64).T
    return Regions(*columns)


def _all_regions(store: SequenceStore) -> Regions:
    return Regions.whole(store.lengths, range(len(store)))
