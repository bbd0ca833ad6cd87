"""Chain set: the chains of a training or validation set in one ``.npz`` file.

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

The arrays that accompany ``msa_depth`` and ``template_count`` are read on first use, so opening a set is fast.
B-factors are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.chemistry.residue_codes import PROFILE_COLUMNS
from ds4sci.data.structures.chain_file import BACKBONE, pack, write_arrays
from ds4sci.data.structures.template_arrays import COUNT as TEMPLATE_COUNT
from ds4sci.data.structures.template_arrays import KEYS as TEMPLATE_KEYS
from ds4sci.data.structures.template_arrays import PackedTemplates
from ds4sci.types import RESIDUES, Msa, Record, TemplateSet

LETTERS = np.frombuffer((RESIDUES + "X").encode(), "S1")
REQUIRED = ("ids", "offsets", "sequence", "backbone_centi_angstrom")
MSA_KEYS = ("msa_letters", "msa_deletion_at", "msa_deletion_count", "msa_names", "msa_names_offsets")


class ChainSet(Sequence[Record]):
    """Sequence of chains that creates each ``Record`` on access: ``ChainSet.open("chains.npz")[0]``.

    Memory: the arrays as stored in the file (about 70 bytes per residue with backbone and profile). A ``Record`` takes
    37 · 13 bytes per residue. Reading from several threads is safe.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str = "memory") -> None:
        self._arrays = dict(arrays)
        self._source = source
        self._file: Path | None = None
        self._packed_templates: PackedTemplates | None = None
        self._check()
        self.ids: list[str] = [str(name) for name in self._arrays["ids"]]
        self.offsets = self._arrays["offsets"].astype(np.int64)
        self.lengths = np.diff(self.offsets)
        self._sequence = self._arrays["sequence"].astype("S1", copy=False).tobytes()
        dssp = self._arrays.get("dssp")
        self._dssp = None if dssp is None else dssp.astype("S1", copy=False).tobytes()
        if "atom37_mask" in self._arrays:
            mask = self._arrays["atom37_mask"]
            if self._arrays["atom37_centi_angstrom"].ndim == 3:
                self._arrays["atom37_centi_angstrom"] = self._arrays["atom37_centi_angstrom"][mask]
            self._atom_offsets = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])[self.offsets]
        if "msa_depth" in self._arrays:
            self._msa_offsets = np.concatenate([[0], np.cumsum(self._arrays["msa_depth"] * self.lengths)])

    @classmethod
    def open(cls, path: str | Path) -> ChainSet:
        """Read a set. Raises ``ValueError`` with the file and the problem, ``FileNotFoundError`` if there is no
        file."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if key not in (*MSA_KEYS, *TEMPLATE_KEYS)}
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: chain set not found; build one with `ds4sci data build SRC_DIR OUT.npz`"
            ) from None
        except Exception as error:  # a damaged zip or header can raise any exception
            raise ValueError(f"{path}: not a chain set (.npz), or truncated ({error})") from error
        found = cls(arrays, str(path))
        found._file = path.absolute()
        return found

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> ChainSet:
        """Create a set in memory, with the precision of the file (0.01 Å, 10⁻⁴)."""
        return cls(pack(records))

    @staticmethod
    def write(path: str | Path, records: Sequence[Record]) -> None:
        """Write a set that ``open`` reads. The write is atomic."""
        write_arrays(path, pack(records))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a set that was read from a file as its path: worker processes read the file themselves."""
        return (ChainSet.open, (self._file,)) if self._file else (ChainSet, (self._arrays, self._source))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._source} has {len(self)} chains; index {index} is out of range")
        index = int(index) % len(self)
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        n = end - begin
        arrays = self._arrays
        positions = np.zeros((n, 37, 3), np.float32)
        if "atom37_mask" in arrays:
            mask = arrays["atom37_mask"][begin:end].copy()
            atoms = slice(self._atom_offsets[index], self._atom_offsets[index + 1])
            positions[mask] = arrays["atom37_centi_angstrom"][atoms] * np.float32(0.01)
        else:
            mask = np.zeros((n, 37), bool)
            mask[:, BACKBONE] = True
            positions[:, BACKBONE] = arrays["backbone_centi_angstrom"][begin:end] * np.float32(0.01)
        profile = None
        if "profile_e4" in arrays:
            stored = arrays["profile_e4"][begin:end]
            if stored.any():
                profile = stored[:, PROFILE_COLUMNS] * np.float32(1e-4)
        dssp = None if self._dssp is None else self._dssp[begin:end].decode()
        resolution = float(arrays["resolution_angstrom"][index]) if "resolution_angstrom" in arrays else 0.0
        numbered = arrays.get("residue_index")
        return Record(
            id=self.ids[index],
            sequence=self._sequence[begin:end].decode(),
            atom_positions=positions,
            atom_mask=mask,
            residue_index=np.arange(n, dtype=np.int32) if numbered is None else numbered[begin:end].astype(np.int32),
            dssp=None if dssp is None or set(dssp) == {"?"} else dssp,
            profile=profile,
            msa=self._msa(index, n),
            resolution=resolution or None,
            templates=self._templates(index),
        )

    def index(self, value, start: int = 0, stop: int | None = None) -> int:
        """Return the index of the chain with this id. Raises ``ValueError`` if there is none."""
        name = value.id if isinstance(value, Record) else value
        return self.ids.index(name, start, len(self) if stop is None else stop)

    def sequence(self, index: int) -> str:
        """Return the sequence of a chain without creating its record."""
        return self._sequence[self.offsets[index] : self.offsets[index + 1]].decode()

    def _msa(self, index: int, n: int) -> Msa | None:
        if "msa_depth" not in self._arrays or not self._arrays["msa_depth"][index]:
            return None
        self._read_late(MSA_KEYS)
        begin, end = self._msa_offsets[index], self._msa_offsets[index + 1]
        depth = int(self._arrays["msa_depth"][index])
        first, last = np.searchsorted(self._arrays["msa_deletion_at"], [begin, end])
        deletions = np.zeros(depth * n, np.int32)
        deletions[self._arrays["msa_deletion_at"][first:last] - begin] = self._arrays["msa_deletion_count"][first:last]
        names = slice(*self._arrays["msa_names_offsets"][index : index + 2])
        return Msa(
            sequences=self._arrays["msa_letters"][begin:end].reshape(depth, n),
            deletions=deletions.reshape(depth, n),
            names=tuple(self._arrays["msa_names"][names].tobytes().decode().split("\n")),
        )

    def _templates(self, index: int) -> TemplateSet | None:
        if TEMPLATE_COUNT not in self._arrays or not self._arrays[TEMPLATE_COUNT][index]:
            return None
        if self._packed_templates is None:
            self._read_late(TEMPLATE_KEYS)
            self._packed_templates = PackedTemplates(self._arrays, self.lengths)
        return self._packed_templates[index]

    def _read_late(self, keys: Sequence[str]) -> None:
        """Read the arrays ``keys`` of the file, unless they have been read."""
        if keys[0] not in self._arrays:
            with np.load(self._source, allow_pickle=False) as file:
                late = {key: file[key] for key in keys}
            # the first is added last: other threads test for it to know that all arrays are loaded
            self._arrays.update({key: late[key] for key in reversed(keys)})

    def _check(self) -> None:
        arrays, where = self._arrays, self._source
        missing = [key for key in REQUIRED if key not in arrays]
        if missing:
            raise ValueError(f"{where}: missing arrays: {', '.join(missing)}; a chain set needs {', '.join(REQUIRED)}")
        offsets = arrays["offsets"]
        chains, n = len(arrays["ids"]), len(arrays["sequence"])
        if offsets.shape != (chains + 1,) or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) <= 0).any():
            raise ValueError(
                f"{where}: offsets must increase from 0 to {n} (number of residues) in {chains} steps (number of ids)"
                f" without empty chains; got {offsets.size} entries"
                + (f" from {offsets[0]} to {offsets[-1]}" if offsets.size else "")
            )
        shapes: dict[str, tuple[int | None, ...]] = {
            "backbone_centi_angstrom": (n, 4, 3), "dssp": (n,), "profile_e4": (n, 20), "atom37_mask": (n, 37),
            "residue_index": (n,), "resolution_angstrom": (chains,), "msa_depth": (chains,),
            TEMPLATE_COUNT: (chains,),
        }  # fmt: skip
        if ("atom37_mask" in arrays) != ("atom37_centi_angstrom" in arrays):
            raise ValueError(
                f"{where}: only one of atom37_mask and atom37_centi_angstrom is present; expected both or neither"
            )
        if "atom37_mask" in arrays:
            dense = arrays["atom37_centi_angstrom"].ndim == 3
            shapes["atom37_centi_angstrom"] = (n, 37, 3) if dense else (int(arrays["atom37_mask"].sum()), 3)
        for key, shape in shapes.items():
            if key in arrays and arrays[key].shape != shape:
                raise ValueError(f"{where}: {key} has shape {arrays[key].shape}; expected {shape}")
        strange = ~np.isin(arrays["sequence"].astype("S1", copy=False), LETTERS)
        if strange.any():
            at = int(np.argmax(strange))
            chain = int(np.searchsorted(offsets, at, side="right")) - 1
            raise ValueError(
                f"{where}: chain {arrays['ids'][chain]} has {arrays['sequence'][at].decode()!r} at residue"
                f" {at - int(offsets[chain]) + 1}; expected one of the twenty amino acids or X"
            )
