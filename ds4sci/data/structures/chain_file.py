"""Conversion of records to the arrays of a chain set, and the ``.npz`` file that stores them.

``ds4sci.data.structures.chain_set`` documents the arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import PROFILE_COLUMNS
from ds4sci.chemistry.residue_constants import ATOM37
from ds4sci.data.structures import template_arrays
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replacing
from ds4sci.types import RESIDUES, Msa, Record

BACKBONE = [ATOM37.index(name) for name in ("N", "CA", "C", "O")]
_BACKBONE_ONLY = np.isin(np.arange(37), BACKBONE)
_FILE_ORDER = np.argsort(PROFILE_COLUMNS)
_ATOMS = ("atom37_mask", "atom37_centi_angstrom")
_ALIGNMENT = (
    "msa_depth", "msa_letters", "msa_deletion_at", "msa_deletion_count", "msa_names", "msa_names_offsets",
)  # fmt: skip


def pack(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the arrays of ``records``, without empty optional arrays.

    Raises ``ValueError`` if there are no records, if an id is repeated, if a chain is empty, or if an atom is more than
    327 Å from the chain's centre (the range of int16).
    """
    return drop_empty_arrays(pack_all_arrays(records))


def pack_all_arrays(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Return the arrays of ``records`` with all optional arrays, so that results can be concatenated."""
    if not records:
        raise ValueError("a chain set needs at least one record; got none")
    _check(records)
    lengths = [len(record.sequence) for record in records]
    return {
        "ids": np.array([record.id for record in records]),
        "offsets": _offsets(lengths),
        "sequence": np.frombuffer("".join(record.sequence for record in records).encode(), "S1"),
        "dssp": np.frombuffer("".join(record.dssp or "?" * len(record.sequence) for record in records).encode(), "S1"),
        "asym_id": np.concatenate([_asym_id(record) for record in records]),
        "residue_index": np.concatenate([record.residue_index for record in records]).astype(np.int32),
        "resolution_angstrom": np.array([record.resolution or 0.0 for record in records], np.float32),
        "backbone_centi_angstrom": np.concatenate([_backbone(record) for record in records]),
        "atom37_mask": np.concatenate([record.atom_mask for record in records]),
        "atom37_centi_angstrom": np.concatenate(
            [np.rint(record.atom_positions[record.atom_mask] * 100.0).astype(np.int32) for record in records]
        ),
        "profile_e4": np.concatenate([_profile(record) for record in records]),
        **_alignments([record.msa for record in records]),
        **template_arrays.pack_templates([record.templates for record in records]),
    }


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate results of ``pack_all_arrays`` in order. Raises ``ValueError`` if an id is repeated."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if not key.endswith("offsets")}
    names, counts = np.unique(joined["ids"], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"two records have the id {str(names[counts > 1][0])!r}; expected unique ids")
    joined["offsets"] = _offsets(np.concatenate([np.diff(part["offsets"]) for part in parts]))
    for key in ("msa_names_offsets", "template_names_offsets"):
        joined[key] = _offsets(np.concatenate([np.diff(part[key]) for part in parts]))
    begins = _offsets([len(part["msa_letters"]) for part in parts])
    joined["msa_deletion_at"] = np.concatenate(
        [part["msa_deletion_at"] + begin for part, begin in zip(parts, begins, strict=False)]
    )
    return joined


def drop_empty_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``arrays`` without optional arrays that carry no information.

    These are atom arrays of backbones that are complete and have no other atoms, and profiles, resolutions, alignments
    and templates if no chain has one, and chain numbers if no record is a complex.
    """
    empty = {
        *(_ATOMS if (arrays["atom37_mask"] == _BACKBONE_ONLY).all() else ()),
        *(() if arrays["asym_id"].any() else ("asym_id",)),
        *(() if arrays["profile_e4"].any() else ("profile_e4",)),
        *(() if arrays["resolution_angstrom"].any() else ("resolution_angstrom",)),
        *(() if arrays["msa_depth"].any() else _ALIGNMENT),
        *(() if arrays[template_arrays.COUNT].any() else (template_arrays.COUNT, *template_arrays.KEYS)),
    }
    return {key: array for key, array in arrays.items() if key not in empty}


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write an ``.npz`` atomically. Create the folder if needed. Without ``compress``, its arrays can be mapped."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_arrays(file, arrays, compress=compress)


def _check(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise ValueError(f"two records have the id {record.id!r}; expected unique ids")
        seen.add(record.id)
        if not record.sequence or not set(record.sequence) <= set(RESIDUES + "X"):
            raise ValueError(
                f"{record.id}: the sequence is empty or has letters other than the twenty amino acids and X"
            )


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _backbone(record: Record) -> np.ndarray:
    has_ca = record.atom_mask[:, BACKBONE[1]]
    centre = record.atom_positions[has_ca, BACKBONE[1]].mean(0) if has_ca.any() else np.zeros(3, np.float32)
    centred = (record.atom_positions[:, BACKBONE] - centre) * record.atom_mask[:, BACKBONE, None]
    if np.abs(centred).max(initial=0.0) > 327.0:
        raise ValueError(
            f"{record.id}: an atom is more than 327 Å from the chain's centre, the largest distance that a chain set"
            " can store"
        )
    return np.rint(centred * 100.0).astype(np.int16)


def _asym_id(record: Record) -> np.ndarray:
    n = len(record.sequence)
    return np.zeros(n, np.uint16) if record.chain_ids is None else record.chain_ids.asym_id.astype(np.uint16)


def _profile(record: Record) -> np.ndarray:
    if record.profile is None:
        return np.zeros((len(record.sequence), 20), np.uint16)
    return np.rint(record.profile[:, _FILE_ORDER] * 1e4).astype(np.uint16)


def _alignments(msas: Sequence[Msa | None]) -> dict[str, np.ndarray]:
    letters = [np.zeros(0, np.uint8) if msa is None else msa.sequences.reshape(-1) for msa in msas]
    flat = np.concatenate([np.zeros(0, np.int32) if msa is None else msa.deletions.reshape(-1) for msa in msas])
    names = ["" if msa is None else "\n".join(msa.names) for msa in msas]
    at = np.flatnonzero(flat)
    blob = [name.encode() for name in names]
    return {
        "msa_depth": np.array([0 if msa is None else len(msa.sequences) for msa in msas], np.int32),
        "msa_letters": np.concatenate(letters),
        "msa_deletion_at": at.astype(np.int64),
        "msa_deletion_count": flat[at].astype(np.int32),
        "msa_names": np.frombuffer(b"".join(blob), np.uint8),
        "msa_names_offsets": _offsets([len(name) for name in blob]),
    }
