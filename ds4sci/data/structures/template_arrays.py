"""Arrays of a chain set that hold templates, see ``ds4sci.data.structures.chain_set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ds4sci.types import TemplateSet

COUNT = "template_count"
KEYS = (
    "template_aatype", "template_atom37_mask", "template_centi_angstrom", "template_names", "template_names_offsets",
)  # fmt: skip
"""Arrays that accompany ``COUNT``; they are read on first use."""


def pack_templates(given: Sequence[TemplateSet | None]) -> dict[str, np.ndarray]:
    """Return the arrays of the templates of each chain, or None for a chain without templates."""
    some = [one for one in given if one is not None]
    names = ["" if one is None else "\n".join(one.names) for one in given]
    blob = [name.encode() for name in names]
    no_aatype, no_mask, no_atoms = np.zeros(0, np.uint8), np.zeros((0, 37), bool), np.zeros((0, 3), np.int32)
    return {
        COUNT: np.array([0 if one is None else len(one.names) for one in given], np.int32),
        "template_aatype": np.concatenate([no_aatype, *(one.aatype.reshape(-1) for one in some)]),
        "template_atom37_mask": np.concatenate([no_mask, *(one.atom_mask.reshape(-1, 37) for one in some)]),
        "template_centi_angstrom": np.concatenate(
            [no_atoms, *(np.rint(one.atom_positions[one.atom_mask] * 100.0).astype(np.int32) for one in some)]
        ),
        "template_names": np.frombuffer(b"".join(blob), np.uint8),
        "template_names_offsets": np.concatenate([[0], np.cumsum([len(name) for name in blob])]).astype(np.int64),
    }


class PackedTemplates:
    """Templates in the arrays of a chain set: ``PackedTemplates(arrays, lengths)[chain]``.

    Memory: the arrays as in the file, about 135 bytes per residue and template.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], lengths: np.ndarray) -> None:
        self.arrays, self.lengths = arrays, lengths
        self.offsets = np.concatenate([[0], np.cumsum(arrays[COUNT] * lengths)]).astype(np.int64)
        atoms = arrays["template_atom37_mask"].sum(1, dtype=np.int64)
        self.atom_offsets = np.concatenate([[0], np.cumsum(atoms)])[self.offsets]

    def __getitem__(self, chain: int) -> TemplateSet | None:
        count, n = int(self.arrays[COUNT][chain]), int(self.lengths[chain])
        if not count:
            return None
        residues, atoms = (slice(*ends[chain : chain + 2]) for ends in (self.offsets, self.atom_offsets))
        mask = self.arrays["template_atom37_mask"][residues].reshape(count, n, 37)
        positions = np.zeros((count, n, 37, 3), np.float32)
        positions[mask] = self.arrays["template_centi_angstrom"][atoms] * np.float32(0.01)
        names = slice(*self.arrays["template_names_offsets"][chain : chain + 2])
        return TemplateSet(
            names=tuple(self.arrays["template_names"][names].tobytes().decode().split("\n")),
            aatype=self.arrays["template_aatype"][residues].reshape(count, n),
            atom_positions=positions,
            atom_mask=mask,
        )
