"""A prepared set of chains in one ``.npz``: what training reads.

Arrays, all chains end to end (n residues, ``offsets[i]:offsets[i + 1]`` are those of chain i):

=========================  ==================  =====================================================================
``ids``                    str [chains]        required
``offsets``                int [chains + 1]    required
``sequence``               S1 [n]              required; ``RESIDUES`` and X
``backbone_centi_angstrom``  int16 [n, 4, 3]   required; N, CA, C, O in 0.01 Å about the centroid of the CAs
``dssp``                   S1 [n]              8 states, C loop, ``?`` unknown
``profile_e4``             uint16 [n, 20]      frequency × 10⁴, columns in order ``PROFILE_ORDER``; zeros: has none
``atom37_mask``            bool [n, 37]        which atoms are there; without it the backbone is complete
``atom37_centi_angstrom``  int32 [atoms, 3]    0.01 Å in the file's own frame, in the order of ``atom37_mask``'s True
                                               entries; the dense form [n, 37, 3] is read too
``residue_index``          int32 [n]           position in the entity; without it 0 … n-1 in each chain
``resolution_angstrom``    float32 [chains]    0 unknown
``msa_depth``              int32 [chains]      rows of each chain's alignment, 0 none; the five below go with it
``msa_letters``            uint8 [Σ depth·n]   indices into ``MSA_ALPHABET``, row by row
``msa_deletion_at``        int64 [k]           flat positions in ``msa_letters`` before which residues were deleted …
``msa_deletion_count``     int32 [k]           … and how many; the rest is 0
``msa_names``              uint8               UTF-8, one name a line
``msa_names_offsets``      int64 [chains + 1]  each chain's bytes in ``msa_names``
=========================  ==================  =====================================================================

The alignment's arrays are read on first use, so a set opens fast. B-factors are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import PROFILE_COLUMNS
from ds4sci.data.structures.chain_file import BACKBONE, pack, write_arrays
from ds4sci.types import RESIDUES, Msa, Record

LETTERS = np.frombuffer((RESIDUES + "X").encode(), "S1")
REQUIRED = ("ids", "offsets", "sequence", "backbone_centi_angstrom")
MSA_KEYS = ("msa_letters", "msa_deletion_at", "msa_deletion_count", "msa_names", "msa_names_offsets")


class ChainSet(Sequence[Record]):
    """Chains by index, made into a ``Record`` when asked for: ``ChainSet.open("chains.npz")[0]``.

    Memory: the arrays of the file as they are (about 70 bytes a residue with backbone and profile). One ``Record`` is
    37 · 13 bytes a residue. Reading from several threads is safe.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str = "memory") -> None:
        self._arrays = dict(arrays)
        self._source = source
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
        """Read a set; ``ValueError`` names the file and what is wrong with it, ``FileNotFoundError`` as usual."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if key not in MSA_KEYS}
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: no such chain set; build one with `ds4sci data build SRC_DIR OUT.npz`"
            ) from None
        except Exception as error:  # a damaged zip or header raises whatever its broken bytes lead to
            raise ValueError(f"{path}: not a chain set in .npz form, or truncated ({error})") from error
        return cls(arrays, str(path))

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> ChainSet:
        """The same records as one set in memory, at the file's precision (0.01 Å, 10⁻⁴)."""
        return cls(pack(records))

    @staticmethod
    def write(path: str | Path, records: Sequence[Record]) -> None:
        """Write a set that ``open`` reads. The file appears complete or not at all (written aside, then renamed)."""
        write_arrays(path, pack(records))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._source} has {len(self)} chains; there is no chain {index}")
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
        )

    def index(self, value, start: int = 0, stop: int | None = None) -> int:
        """Position of the chain with this id; ``ValueError`` if the set has none."""
        name = value.id if isinstance(value, Record) else value
        return self.ids.index(name, start, len(self) if stop is None else stop)

    def sequence(self, index: int) -> str:
        """Only the letters of a chain, without making its record."""
        return self._sequence[self.offsets[index] : self.offsets[index + 1]].decode()

    def _msa(self, index: int, n: int) -> Msa | None:
        if "msa_depth" not in self._arrays or not self._arrays["msa_depth"][index]:
            return None
        if "msa_letters" not in self._arrays:
            with np.load(self._source, allow_pickle=False) as file:
                late = {key: file[key] for key in MSA_KEYS}
            # msa_letters goes in last, because other threads take it as the sign that all are there
            self._arrays.update({key: late[key] for key in reversed(MSA_KEYS)})
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

    def _check(self) -> None:
        arrays, where = self._arrays, self._source
        missing = [key for key in REQUIRED if key not in arrays]
        if missing:
            raise ValueError(f"{where}: a chain set needs {', '.join(REQUIRED)}; missing: {', '.join(missing)}")
        offsets = arrays["offsets"]
        chains, n = len(arrays["ids"]), len(arrays["sequence"])
        if offsets.shape != (chains + 1,) or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) <= 0).any():
            raise ValueError(
                f"{where}: offsets must rise from 0 to {n} (the residues) in {chains} steps (the ids), with no empty"
                f" chain; got {offsets.size} entries" + (f" from {offsets[0]} to {offsets[-1]}" if offsets.size else "")
            )
        shapes: dict[str, tuple[int | None, ...]] = {
            "backbone_centi_angstrom": (n, 4, 3), "dssp": (n,), "profile_e4": (n, 20), "atom37_mask": (n, 37),
            "residue_index": (n,), "resolution_angstrom": (chains,), "msa_depth": (chains,),
        }  # fmt: skip
        if ("atom37_mask" in arrays) != ("atom37_centi_angstrom" in arrays):
            raise ValueError(f"{where}: atom37_mask and atom37_centi_angstrom go together; only one is there")
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
