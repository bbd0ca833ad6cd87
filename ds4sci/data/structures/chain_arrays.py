"""Chains of one file of a chain set, which creates their records; ``chain_set`` documents the arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ds4sci.chemistry.chains import chain_slices, number_chains
from ds4sci.chemistry.residue_codes import PROFILE_COLUMNS
from ds4sci.data.structures.chain_file import BACKBONE
from ds4sci.data.structures.template_arrays import COUNT as TEMPLATE_COUNT
from ds4sci.data.structures.template_arrays import KEYS as TEMPLATE_KEYS
from ds4sci.data.structures.template_arrays import PackedTemplates
from ds4sci.files.array_files import map_arrays
from ds4sci.types import RESIDUES, ChainIds, Msa, Record, TemplateSet

LETTERS = np.frombuffer((RESIDUES + "X").encode(), "S1")
REQUIRED = ("ids", "offsets", "sequence", "backbone_centi_angstrom")
MSA_KEYS = ("msa_letters", "msa_deletion_at", "msa_deletion_count", "msa_names", "msa_names_offsets")


class ChainArrays:
    """Arrays of a chain set, and the ``Record`` of each chain on access. Reading from several threads is safe."""

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str = "memory") -> None:
        """Raises ValueError, naming ``source``, for missing arrays, shapes that do not match, and unknown letters."""
        self.arrays = dict(arrays)
        self._packed_templates: PackedTemplates | None = None
        self._source = source
        self._check()
        self.ids: list[str] = [str(name) for name in self.arrays["ids"]]
        self.offsets = self.arrays["offsets"].astype(np.int64)
        self.lengths = np.diff(self.offsets)
        self._sequence = self.arrays["sequence"].astype("S1", copy=False).tobytes()
        dssp = self.arrays.get("dssp")
        self._dssp = None if dssp is None else dssp.astype("S1", copy=False).tobytes()
        if "atom37_mask" in self.arrays:
            mask = self.arrays["atom37_mask"]
            if self.arrays["atom37_centi_angstrom"].ndim == 3:
                self.arrays["atom37_centi_angstrom"] = self.arrays["atom37_centi_angstrom"][mask]
            self._atom_offsets = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])[self.offsets]
        if "msa_depth" in self.arrays:
            self._msa_offsets = np.concatenate([[0], np.cumsum(self.arrays["msa_depth"] * self.lengths)])

    @classmethod
    def open(cls, path: Path) -> ChainArrays:
        """Map or read a file. Raises ``ValueError`` with the file and the problem, ``FileNotFoundError`` if there is
        none."""
        try:
            arrays = map_arrays(path, omit_compressed=(*MSA_KEYS, *TEMPLATE_KEYS))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: chain set not found; build one with `ds4sci data build SRC_DIR OUT.npz`"
            ) from None
        except Exception as error:  # a damaged zip or header can raise any exception
            raise ValueError(f"{path}: not a chain set (.npz), or truncated ({error})") from error
        return cls(arrays, str(path))

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> Record:
        """Return the chain ``index`` ≥ 0."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        n = end - begin
        arrays = self.arrays
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
            chain_ids=self._chain_ids(index),
        )

    def sequence(self, index: int) -> str:
        """Return the sequence of a chain without creating its record."""
        return self._sequence[self.offsets[index] : self.offsets[index + 1]].decode()

    def chain_sequences(self, index: int) -> list[str]:
        """Return the sequences of the chains of a record: of a single chain, its own."""
        sequence = self.sequence(index)
        if not self.is_complex(index):
            return [sequence]
        asym_id = self.arrays["asym_id"][self.offsets[index] : self.offsets[index + 1]]
        return [sequence[own] for own in chain_slices(asym_id)]

    def is_complex(self, index: int) -> bool:
        """Return whether a record has chain numbers."""
        return "asym_id" in self.arrays and bool(self.arrays["asym_id"][self.offsets[index]])

    def _chain_ids(self, index: int) -> ChainIds | None:
        return number_chains(self.chain_sequences(index)) if self.is_complex(index) else None

    def _msa(self, index: int, n: int) -> Msa | None:
        if "msa_depth" not in self.arrays or not self.arrays["msa_depth"][index]:
            return None
        self._read_late(MSA_KEYS)
        begin, end = self._msa_offsets[index], self._msa_offsets[index + 1]
        depth = int(self.arrays["msa_depth"][index])
        first, last = np.searchsorted(self.arrays["msa_deletion_at"], [begin, end])
        deletions = np.zeros(depth * n, np.int32)
        deletions[self.arrays["msa_deletion_at"][first:last] - begin] = self.arrays["msa_deletion_count"][first:last]
        names = slice(*self.arrays["msa_names_offsets"][index : index + 2])
        return Msa(
            sequences=self.arrays["msa_letters"][begin:end].reshape(depth, n),
            deletions=deletions.reshape(depth, n),
            names=tuple(self.arrays["msa_names"][names].tobytes().decode().split("\n")),
        )

    def _templates(self, index: int) -> TemplateSet | None:
        if TEMPLATE_COUNT not in self.arrays or not self.arrays[TEMPLATE_COUNT][index]:
            return None
        if self._packed_templates is None:
            self._read_late(TEMPLATE_KEYS)
            self._packed_templates = PackedTemplates(self.arrays, self.lengths)
        return self._packed_templates[index]

    def _read_late(self, keys: Sequence[str]) -> None:
        """Read the arrays ``keys`` of a compressed file, unless they have been read."""
        if keys[0] not in self.arrays:
            with np.load(self._source, allow_pickle=False) as file:
                late = {key: file[key] for key in keys}
            # the first is added last: other threads test for it to know that all arrays are loaded
            self.arrays.update({key: late[key] for key in reversed(keys)})

    def _check(self) -> None:
        arrays, where = self.arrays, self._source
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
            "residue_index": (n,), "asym_id": (n,), "resolution_angstrom": (chains,), "msa_depth": (chains,),
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
        if "asym_id" in arrays:
            asym_id = arrays["asym_id"].astype(np.int64)
            step = np.diff(asym_id, prepend=0)
            step[offsets[:-1]] = 0
            first = asym_id[offsets[:-1]]
            bad = (step < 0) | (step > 1) | ((step > 0) & (asym_id == 1))
            bad[offsets[:-1]] = (first < 0) | (first > 1)
            if bad.any():
                chain = int(np.searchsorted(offsets, int(np.argmax(bad)), side="right")) - 1
                raise ValueError(
                    f"{where}: asym_id of {arrays['ids'][chain]} must be 0 in a single chain, and count the chains of a"
                    " complex from 1 in their order"
                )
        strange = ~np.isin(arrays["sequence"].astype("S1", copy=False), LETTERS)
        if strange.any():
            at = int(np.argmax(strange))
            chain = int(np.searchsorted(offsets, at, side="right")) - 1
            raise ValueError(
                f"{where}: chain {arrays['ids'][chain]} has {arrays['sequence'][at].decode()!r} at residue"
                f" {at - int(offsets[chain]) + 1}; expected one of the twenty amino acids or X"
            )
