"""Templates for tests of the structure model: perturbed copies of a chain, with gaps and missing atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ds4sci.chemistry.residue_codes import GAP, encode
from ds4sci.types import Record, TemplateSet


def with_templates(record: Record, count: int, seed: int = 0, missing: float = 0.05) -> Record:
    """Return ``record`` with ``count`` templates, of which each has a gap and some other residues.

    missing  fraction of the atoms without coordinates
    """
    rng = np.random.default_rng(seed)
    n = len(record.sequence)
    aatype = np.tile(np.minimum(encode(record.sequence), 20), (count, 1)).astype(np.uint8)
    aatype[rng.random(aatype.shape) < 0.2] = rng.integers(20)
    mask = np.tile(record.atom_mask, (count, 1, 1)) & (rng.random((count, n, 37)) > missing)
    for row in range(count):
        start = int(rng.integers(n - 2))
        aatype[row, start : start + 3], mask[row, start : start + 3] = GAP, False
    noise = rng.normal(0.0, 0.5, (count, n, 37, 3))
    positions = ((record.atom_positions + noise) * mask[..., None]).astype(np.float32)
    return replace(record, templates=TemplateSet(tuple(f"t{i}" for i in range(count)), aatype, positions, mask))
