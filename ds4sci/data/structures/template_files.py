"""Templates of a chain: made from known structures by an alignment, written to and read from ``.npz`` files.

``aatype``, ``atom_positions``, ``atom_mask`` and ``names`` of the file are the fields of ``TemplateSet``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import GAP, UNKNOWN, encode
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replacing
from ds4sci.types import Record, TemplateSet


def align_templates(length: int, structures: Sequence[tuple[Record, np.ndarray]]) -> TemplateSet:
    """Return the templates of a query of ``length`` residues, the best first.

    Each structure comes with an alignment, int [length]: the index of the residue in its ``sequence`` that is aligned
    to each residue of the query, or -1 for none. Raises ValueError, naming the structure, for an alignment that does
    not fit.
    """
    t = len(structures)
    aatype = np.full((t, length), GAP, np.uint8)
    positions, mask = np.zeros((t, length, 37, 3), np.float32), np.zeros((t, length, 37), bool)
    for row, (record, alignment) in enumerate(structures):
        index = np.asarray(alignment)
        if index.shape != (length,) or index.dtype.kind not in "iu":
            raise ValueError(f"{record.id}: the alignment must be {length} integers; got {index.dtype} {index.shape}")
        if index.min(initial=-1) < -1 or index.max(initial=-1) >= len(record.sequence):
            raise ValueError(f"{record.id}: the alignment has indices outside -1 … {len(record.sequence) - 1}")
        columns = np.flatnonzero(index >= 0)
        aatype[row, columns] = np.minimum(encode(record.sequence), UNKNOWN)[index[columns]]
        mask[row, columns] = record.atom_mask[index[columns]]
        positions[row, columns] = record.atom_positions[index[columns]]
    positions *= mask[..., None]
    return TemplateSet(tuple(record.id for record, _ in structures), aatype, positions, mask)


def write_templates(path: Path, templates: TemplateSet) -> None:
    """Write a compressed ``.npz`` atomically, which ``read_templates`` reads."""
    arrays = {
        "names": np.array(templates.names, str), "aatype": templates.aatype,
        "atom_positions": templates.atom_positions, "atom_mask": templates.atom_mask,
    }  # fmt: skip
    with replacing(path) as file:
        save_arrays(file, arrays, compress=True)


def read_templates(path: Path, length: int) -> TemplateSet:
    """Read the templates of a query of ``length`` residues. Nothing is unpickled.

    Raises ValueError, naming the file, for missing or wrong arrays, coordinates that are not finite, and a template
    without atoms.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("names", "aatype", "atom_positions", "atom_mask")}
    except Exception as error:  # a damaged zip or header can raise any exception
        raise ValueError(f"{path}: not a file of templates (.npz): {error}") from error
    t = len(arrays["names"])
    expected = {
        "names": ("U", (t,)), "aatype": ("iu", (t, length)), "atom_positions": ("f", (t, length, 37, 3)),
        "atom_mask": ("b", (t, length, 37)),
    }  # fmt: skip
    for name, (kinds, shape) in expected.items():
        found = arrays[name]
        if found.shape != shape or found.dtype.kind not in kinds:
            raise ValueError(f"{path}: {name} is {found.dtype} {found.shape}; expected {shape} for {length} residues")
    aatype, mask = arrays["aatype"], arrays["atom_mask"]
    if aatype.min(initial=0) < 0 or aatype.max(initial=0) > GAP:
        raise ValueError(f"{path}: aatype has values outside 0 … {GAP}: residues in AlphaFold's order, 20 X, 21 gap")
    if not np.isfinite(arrays["atom_positions"][mask]).all():
        raise ValueError(f"{path}: atom_positions has coordinates that are not finite; set atom_mask to False there")
    if not mask.any((1, 2)).all():
        raise ValueError(f"{path}: {arrays['names'][np.argmin(mask.any((1, 2)))]} has no atoms; leave it out")
    return TemplateSet(
        tuple(map(str, arrays["names"])),
        aatype.astype(np.uint8),
        np.where(mask[..., None], arrays["atom_positions"], 0.0).astype(np.float32),
        mask,
    )
