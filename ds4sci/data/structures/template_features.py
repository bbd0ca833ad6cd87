"""Template features of one example: selection of templates (AlphaFold 2 supplement 1.2.2), crop and padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.data.structures.crops import Window
from ds4sci.types import Record, TemplateSet

ABSENT = 0
"""Letter of templates that do not exist: AlphaFold pads with 0, and AlphaFold-Multimer reads these letters too."""

AVAILABLE = 20
"""Number of templates of a chain from which training chooses, the first ones."""


def template_features(
    record: Record, window: Window, most: int, rng: np.random.Generator, *, subsample: bool
) -> dict[str, Any]:
    """Return the fields ``template_*`` of ``Features`` for the residues in ``window``; empty if ``most`` is 0.

    Without ``subsample`` these are the first templates, at most ``most``. With it, k of the first n ≤ 20 in random
    order, where k = min(u, ``most``) and u is uniform in 0 … n: some examples have no templates. The rest of ``most``
    are absent templates without atoms, whose letters are ``ABSENT``. Raises ``ValueError`` for templates that do not
    fit the sequence.
    """
    if not most:
        return {}
    n = len(record.residue_index[window])
    fields: dict[str, Any] = {
        "template_aatype": np.full((most, n), ABSENT, np.int64),
        "template_positions": np.zeros((most, n, 37, 3), np.float32),
        "template_atom_mask": np.zeros((most, n, 37), bool),
        "template_mask": np.zeros(most, bool),
    }
    templates = record.templates
    if templates is None or not len(templates.aatype):
        return fields
    _check(record, templates)
    chosen = np.arange(min(len(templates.aatype), AVAILABLE if subsample else most))
    if subsample:
        count = min(int(rng.integers(len(chosen) + 1)), most)
        chosen = rng.permutation(chosen)[:count]
    k = len(chosen)
    mask = templates.atom_mask[:, window][chosen]
    fields["template_aatype"][:k] = templates.aatype[:, window][chosen]
    fields["template_positions"][:k] = np.where(mask[..., None], templates.atom_positions[:, window][chosen], 0.0)
    fields["template_atom_mask"][:k] = mask
    fields["template_mask"][:k] = True
    return fields


def _check(record: Record, templates: TemplateSet) -> None:
    shape = (len(templates.aatype), len(record.sequence))
    expected = {"aatype": shape, "atom_positions": (*shape, 37, 3), "atom_mask": (*shape, 37)}
    for name, wanted in expected.items():
        found = getattr(templates, name).shape
        if found != wanted:
            raise ValueError(f"{record.id}: templates.{name} has the shape {found}; expected {wanted}")
    if templates.aatype.max() > GAP:
        raise ValueError(f"{record.id}: templates.aatype has {templates.aatype.max()}; expected 0 to {GAP} (gap)")
