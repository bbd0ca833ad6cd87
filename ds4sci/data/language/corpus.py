"""Sequences and the tokenizer of a language task: opened, indexed where they are not yet, parted into two sides."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data import tokenizers
from ds4sci.data.clustering.sequence_split import leakage, split_by_cluster, split_by_record
from ds4sci.data.language.windows import Letters, Regions, Windows, cut
from ds4sci.data.sequences import Range, SequenceStore, index
from ds4sci.data.sequences.alphabet import PROTEIN
from ds4sci.data.tokenizers.schemes import Period
from ds4sci.files import locks
from ds4sci.files.atomic_files import replacing
from ds4sci.files.cache import derived_path
from ds4sci.types import RESIDUES

CHECKED = 2_000_000
"""Residues of both sides in which a run looks for relatives across them when it starts."""


class Coder:
    """A tokenizer as rows need it.

    tokenizer   of the Hugging Face API; what is saved with the model
    vocabulary  its tokens
    pad, mask   ids; mask is −1 for a tokenizer without one
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = tokenizers.residue_encoder(tokenizer)
        self.vocabulary = len(tokenizer)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
        self.mask = int(tokenizer.mask_token_id) if tokenizer.mask_token_id is not None else -1
        self.prefix = len(self.encoder.prefix)
        self.ends = self.prefix + len(self.encoder.suffix)
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)

    @property
    def special_ids(self) -> dict[str, int]:
        """``pad_token_id`` and its like, for a new model's config."""
        found = {
            f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("pad", "mask", "bos", "eos")
        }
        return {name: int(value) for name, value in found.items() if value is not None}

    @cached_property
    def names(self) -> list[str]:
        """Each token's text."""
        return [str(name) for name in self.tokenizer.convert_ids_to_tokens(range(self.vocabulary))]

    @property
    def alphabet(self) -> str | None:
        """``dna`` where all tokens are of bases, ``protein`` where they are amino acids, else None."""
        letters = {*"".join(name for name in self.names if name.isascii() and name.isalpha())}
        if letters and letters <= {*"ACGTUN"}:
            return "dna"
        return "protein" if {*RESIDUES} <= letters <= {*PROTEIN.letters} else None

    @cached_property
    def residue_ids(self) -> np.ndarray:
        """int64: ids that stand for residues, which a masked token may be replaced by."""
        special = set(self.tokenizer.all_special_ids)
        plain = [i for i in range(self.vocabulary) if i not in special]
        amino = [i for i in plain if self.names[i] in [*RESIDUES]]
        return np.array(amino if len(amino) == len(RESIDUES) else plain, dtype=np.int64)

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, first residue, residues) of every token of a document; special tokens stand for 0 residues."""
        ids, start, size = self.encoder.encode(letters)
        around = (self.prefix, self.ends - self.prefix)
        return self.encoder.wrap(ids).astype(np.int64), np.pad(start, around), np.pad(size, around)

    @property
    def period(self) -> Period | None:
        """See ``ResidueEncoder.period``."""
        return self.encoder.period

    def fingerprint(self) -> str:
        """What the tokenizer does, as a hash."""
        own = getattr(self.tokenizer, "backend_tokenizer", None)
        what = own.to_str() if own is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{type(self.tokenizer).__name__} {what}".encode()).hexdigest()

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        """bool: which of ``ids`` are ``<unk>``."""
        return np.asarray(ids == self._unknown)


def coder(model: str | None, options: dict[str, Any], *, causal: bool) -> Coder:
    """The tokenizer of a loaded model, or a new one of ``options`` (``kind`` and its own).

    Raises ValueError where neither says which, both do, or a masked model's tokenizer has no mask token.
    """
    if model is not None and not options:
        found = tokenizers.load(model)
    elif options:
        given = dict(options)
        if "kind" not in given:
            raise ValueError(f"data.tokenizer: it needs kind, one of {', '.join(tokenizers.KINDS)}")
        found = tokenizers.build(given.pop("kind"), **given)
    else:
        raise ValueError('data.tokenizer: a new model needs one, such as tokenizer = {kind = "esm"}')
    one = Coder(found)
    if not causal and one.mask < 0:
        raise ValueError(
            f"{type(found).__name__} has no mask token, which masked_lm needs; take causal_lm, or another one"
        )
    return one


@dataclass(frozen=True)
class Sides:
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


def open_sides(
    path: Path, valid: Path | None, *, alphabet: str, bad: str, fraction: float, identity: float, seed: int
) -> Sides:
    """What is trained on and what is held out: two stores, or ``fraction`` of one.

    Proteins are parted by homology clusters (``identity``), genomes by records, a single record at its end. Which
    residues that are is kept beside the store, so that it is found once. Of relatives across two stores of
    ``CHECKED`` residues or less there is a warning.
    """
    store = open_store(path, alphabet=alphabet, bad=bad)
    if valid is not None:
        other = open_store(valid, alphabet=alphabet, bad=bad)
        if other.alphabet != store.alphabet:
            raise ValueError(f"data.valid: {valid} has {other.alphabet} sequences, and data.path {store.alphabet} ones")
        _look_for_relatives(store, other, identity)
        return Sides(store, _all(store), other, _all(other))
    if store.alphabet == "dna":
        train, held_out = (_regions(side) for side in split_by_record(store, fraction, seed))
    else:
        chosen = _clusters(store, path, fraction, identity, seed)
        train, held_out = (Regions.whole(store.lengths, side) for side in chosen)
    return Sides(store, train, store, held_out)


def cut_once(
    store: SequenceStore, regions: Regions, coder: Coder, letters: Letters, *, document: int, both_strands: bool
) -> Windows:
    """``ds4sci.data.language.windows.cut`` of ``store``; where that tokenises it, the result is kept beside the store:
    other ranks and later runs of the same sequences, tokenizer and length read it."""
    if coder.period is not None:
        return cut(regions, coder, letters, document=document, both_strands=both_strands)
    told = hashlib.sha256(repr((store.manifest["files"], coder.fingerprint(), document, both_strands)).encode())
    for column in (regions.record, regions.start, regions.stop):
        told.update(column.tobytes())
    file = derived_path(store.folder, f".windows-{told.hexdigest()[:16]}.npz", kind="sequences")
    with locks.exclusive(file.with_name(f".{file.name}.lock")):
        if not file.is_file():
            made = cut(regions, coder, letters, document=document, both_strands=both_strands)
            _write_arrays(file, made.arrays())
    with np.load(file, allow_pickle=False) as arrays:
        return Windows.of(arrays)


def _write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a ``.npz`` atomically."""
    with replacing(file, sync=False) as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def _look_for_relatives(train: SequenceStore, valid: SequenceStore, identity: float) -> None:
    """Warn of held-out sequences with relatives among those to train on, where looking takes seconds."""
    if train.total + valid.total > CHECKED:
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
