"""Chain set: the chains of a training or validation set in one ``.npz`` file, or in a folder of them.

Arrays with all chains concatenated (n residues in total; chain i has rows ``offsets[i]:offsets[i + 1]``):

===========================  ==================  ==================================================================
``ids``                      str [chains]        required
``offsets``                  int [chains + 1]    required
``sequence``                 S1 [n]              required; ``RESIDUES`` and X
``backbone_centi_angstrom``  int16 [n, 4, 3]     required; N, CA, C, O in 0.01 Å from the centroid of the CA atoms
``dssp``                     S1 [n]              8 DSSP states, C loop, ``?`` unknown
``profile_e4``               uint16 [n, 20]      frequency × 10⁴ in ``PROFILE_ORDER``; all zero = no profile
``atom37_mask``              bool [n, 37]        True = present; without this array: complete backbones
``atom37_centi_angstrom``    int32 [atoms, 3]    0.01 Å in the frame of the structure file, in the order of
                                                 the True entries of ``atom37_mask``; the dense form
                                                 [n, 37, 3] is accepted too
``residue_index``            int32 [n]           position in the entity; without this array: 0 … n-1
``asym_id``                  uint16 [n]          number of the chain in a complex, from 1; 0 in a single chain.
                                                 Without this array: single chains
``resolution_angstrom``      float32 [chains]    Å, 0 = unknown
``msa_depth``                int32 [chains]      number of alignment rows, 0 = no alignment
``msa_letters``              uint8 [Σ depth·n]   indices into ``MSA_ALPHABET``, row-major
``msa_deletion_at``          int64 [k]           flat positions in ``msa_letters`` that follow deleted residues
``msa_deletion_count``       int32 [k]           number of deleted residues there; 0 elsewhere
``msa_names``                uint8               UTF-8, one name per line
``msa_names_offsets``        int64 [chains + 1]  start and end of each chain's bytes in ``msa_names``
``template_count``           int32 [chains]      number of templates, t; 0 = none
``template_aatype``          uint8 [Σ t·n]       0–19, 20 X, 21 gap, row-major
``template_atom37_mask``     bool [Σ t·n, 37]    True = present
``template_centi_angstrom``  int32 [atoms, 3]    0.01 Å, in the order of the True entries of the mask
``template_names``           uint8               UTF-8, one name per line
``template_names_offsets``   int64 [chains + 1]  start and end of each chain's bytes in ``template_names``
===========================  ==================  ==================================================================

The entity numbers of a complex are those of equal sequences among its chains. Five arrays each accompany ``msa_depth``
and ``template_count``. B-factors are not stored.

Uncompressed arrays are mapped into memory: they are read where they are used, and processes share them. Compressed ones
are read when the set is opened, those of alignments and templates on first use. ``ds4sci data build
--chains-per-file`` writes a folder of uncompressed files, for sets that are larger than the memory.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.structures.chain_arrays import ChainArrays
from ds4sci.data.structures.chain_file import concatenate, drop_empty_arrays, pack, pack_all_arrays, write_arrays
from ds4sci.files.atomic_files import fingerprint, new_folder
from ds4sci.types import Record

CHAINS_PER_FILE = 1000
"""Chains of a file in a folder that is made from another set."""


class ChainSet(Sequence[Record]):
    """Sequence of chains that creates each ``Record`` on access: ``ChainSet.open("chains.npz")[0]``.

    ids      names of all chains
    lengths  number of residues of each, int64

    Memory: names, lengths, sequences and atom masks; of compressed files, all arrays (about 70 bytes per residue with
    backbone and profile). A ``Record`` takes 37 · 13 bytes per residue. Reading from several threads is safe.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str = "memory") -> None:
        """A set in memory. Raises ValueError for invalid arrays."""
        self._set_files([ChainArrays(arrays, source)], source, None)

    def _set_files(self, files: list[ChainArrays], source: str, path: Path | None) -> None:
        self._files, self._source, self._path = files, source, path
        self.ids: list[str] = [name for file in files for name in file.ids]
        self.lengths = np.concatenate([file.lengths for file in files])
        self._begins = np.cumsum([0] + [len(file) for file in files])

    @classmethod
    def open(cls, path: str | Path) -> ChainSet:
        """Open a file, or all ``.npz`` files of a folder in the order of their names.

        Raises ``ValueError`` with the file and the problem, also for an id in two files of a folder, and
        ``FileNotFoundError`` if there is no file.
        """
        path = Path(path)
        names = cls._list(path)
        found = cls.__new__(cls)
        found._set_files([ChainArrays.open(name) for name in names], str(path), path.absolute())
        owner: dict[str, Path] = {}
        for name, file in zip(names, found._files, strict=True):
            for chain in file.ids if len(names) > 1 else ():
                if chain in owner:
                    raise ValueError(f"{path}: {owner[chain].name} and {name.name} both have a chain {chain!r}")
                owner[chain] = name
        return found

    @staticmethod
    def _list(path: Path) -> list[Path]:
        names = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not names:
            raise FileNotFoundError(f"{path}: no .npz file in this folder; expected the files of a chain set")
        return names

    @classmethod
    def stores_complexes(cls, path: Path) -> bool:
        """Whether the set ``path`` has complexes, by the names of its arrays, without reading them.

        Raises as ``open`` does for files that are absent or no ``.npz``.
        """
        for file in cls._list(path):
            try:
                with zipfile.ZipFile(file) as arrays:
                    if "asym_id.npy" in arrays.namelist():
                        return True
            except (OSError, zipfile.BadZipFile):
                ChainArrays.open(file)  # its errors name the file and the remedy
        return False

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> ChainSet:
        """Create a set in memory, with the precision of the file (0.01 Å, 10⁻⁴)."""
        return cls(pack(records))

    @staticmethod
    def write(path: str | Path, records: Sequence[Record]) -> None:
        """Write a file that ``open`` reads. The write is atomic."""
        write_arrays(path, pack(records))

    def write_subset(self, out: Path, indices: Sequence[int]) -> None:
        """Write some chains to ``out``: a file if its name ends in ``.npz``, otherwise a new folder of files."""
        if out.suffix == ".npz":
            self.write(out, [self[int(index)] for index in indices])
            return
        with new_folder(out) as temporary:
            write_files(temporary, (pack_all_arrays([self[int(index)]]) for index in indices), CHAINS_PER_FILE)

    @staticmethod
    def checksum(path: Path) -> str:
        """SHA-256 of a file; of a folder, that of the names and SHA-256 of its files. Does not open the set."""
        if path.is_file():
            return str(fingerprint(path)["sha256"])
        files = [f"{file.name} {fingerprint(file)['sha256']}\n" for file in sorted(path.glob("*.npz"))]
        return hashlib.sha256("".join(files).encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a set that was read from a file as its path: worker processes read the file themselves."""
        return (ChainSet.open, (self._path,)) if self._path else (ChainSet, (self._files[0].arrays, self._source))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file, number = self._locate(index)
        return file.record(number)

    def _locate(self, index: int) -> tuple[ChainArrays, int]:
        """The file of a chain, and its number in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._source} has {len(self)} chains; index {index} is out of range")
        index = int(index) % len(self)
        file = int(np.searchsorted(self._begins, index, side="right")) - 1
        return self._files[file], index - int(self._begins[file])

    def index(self, value, start: int = 0, stop: int | None = None) -> int:
        """Return the index of the chain with this id. Raises ``ValueError`` if there is none."""
        name = value.id if isinstance(value, Record) else value
        return self.ids.index(name, start, len(self) if stop is None else stop)

    def sequence(self, index: int) -> str:
        """Return the sequence of a chain without creating its record."""
        file, number = self._locate(index)
        return file.sequence(number)

    def chain_sequences(self, index: int) -> list[str]:
        """Return the sequences of the chains of a complex, or that of a single chain."""
        file, number = self._locate(index)
        return file.chain_sequences(number)

    def require_single_chains(self) -> ChainSet:
        """Return this set. Raises ``ValueError``, naming it, if it has complexes."""
        if self.has_complexes:
            raise ValueError(
                f"{self._source}: has complexes, whose chains would be taken for one; expected a chain set of single"
                " chains: build it without --complexes"
            )
        return self

    @property
    def has_complexes(self) -> bool:
        """Whether a record is a complex."""
        return any("asym_id" in file.arrays for file in self._files)


def write_files(folder: Path, parts: Iterable[dict[str, np.ndarray]], chains_per_file: int) -> int:
    """Write results of ``pack_all_arrays`` as the files of a set, uncompressed; return the number of chains.

    A file gets parts until it has ``chains_per_file`` chains; only one file's parts are in memory.
    """
    waiting: list[dict[str, np.ndarray]] = []
    total = count = files = 0

    def flush() -> None:
        nonlocal count, files
        if waiting:
            write_arrays(folder / f"{files:06d}.npz", drop_empty_arrays(concatenate(waiting)), compress=False)
            files, count = files + 1, 0
            waiting.clear()

    for part in parts:
        waiting.append(part)
        total, count = total + len(part["ids"]), count + len(part["ids"])
        if count >= chains_per_file:
            flush()
    flush()
    return total
