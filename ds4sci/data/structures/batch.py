"""Collation of examples into one padded ``Batch``, the step from numpy to torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from ds4sci.types import Batch, Features

_PADDING = {"aatype": 20, "secondary": -1, "template_aatype": 21}
"""Padding values (X, unknown and gap); all other fields are padded with 0 or False."""

_CHAIN_IDS = ("asym_id", "entity_id", "sym_id")
_TEMPLATES = tuple(field.name for field in fields(Features) if field.name.startswith("template_"))


def collate(
    features: Sequence[Features], *, recycling: int = 0, step: int = 0, progress: float = 0.0, multiple: int = 1
) -> Batch:
    """Stack b examples, padded to the largest n (rounded up to ``multiple``) and to the largest s and e.

    The padding value is X in ``aatype``, a gap in ``template_aatype``, -1 in ``secondary`` and 0 or False in all other
    fields; ``token_mask``, ``msa_mask`` and ``extra_msa_mask`` are False there. In a batch with a complex, a single
    chain is a complex of one chain; a batch of single chains has no chain numbers. Raises ``ValueError`` for an empty
    list, for examples with and without templates, and for samples of the alignment for fewer than ``recycling`` passes.
    """
    if not features:
        raise ValueError("a batch needs at least one example; got none")
    n = -(-max(len(one.aatype) for one in features) // multiple) * multiple
    stacked: dict[str, Any] = {}
    with_templates = {one.template_aatype is not None for one in features}
    if len(with_templates) > 1:
        raise ValueError(
            "some examples of a batch have templates and others have none; make all of them with the same max_templates"
        )
    has_complex = any(one.asym_id is not None for one in features)
    left_out = {
        "id",
        "earlier_msa",
        *(() if with_templates == {True} else _TEMPLATES),
        *(() if has_complex else _CHAIN_IDS),
        *(() if any(one.is_predicted for one in features) else ("is_predicted",)),
    }
    for field in fields(Features):
        if field.name in left_out:
            continue
        values = [getattr(one, field.name) for one in features]
        if field.name in _CHAIN_IDS:
            values = [
                np.ones(len(one.aatype), np.int64) if value is None else value
                for one, value in zip(features, values, strict=True)
            ]
        arrays = [np.asarray(value) for value in values]
        stacked[field.name] = torch.from_numpy(_stack(arrays, n, field.name, _PADDING.get(field.name, 0)))
    stacked["factor"] = stacked["factor"].float()
    token_mask = np.zeros((len(features), n), bool)
    for row, one in enumerate(features):
        token_mask[row, : len(one.aatype)] = True
    earlier = tuple(one.earlier_msa for one in features)
    for one in features:
        if one.earlier_msa is not None and len(one.earlier_msa) < recycling:
            raise ValueError(
                f"{one.id}: its alignment was sampled for {len(one.earlier_msa)} recycling passes before the last one, "
                f"and the batch has {recycling}; make the features with earlier_passes={recycling}"
            )
    return Batch(
        ids=tuple(one.id for one in features),
        earlier_msa=None if all(one is None for one in earlier) else earlier,
        token_mask=torch.from_numpy(token_mask),
        recycling=recycling,
        step=step,
        progress=progress,
        **stacked,
    )


def _stack(arrays: Sequence[np.ndarray], n: int, name: str, padding: int) -> np.ndarray:
    if arrays[0].ndim == 0:
        return np.stack(arrays)
    if name == "template_mask":
        return np.stack(arrays)
    with_rows = "msa" in name or name in _TEMPLATES  # shape [rows, n, …], not [n, …]
    lead = (max(array.shape[0] for array in arrays), n) if with_rows else (n,)
    out = np.full((len(arrays), *lead, *arrays[0].shape[len(lead) :]), padding, arrays[0].dtype)
    for row, array in enumerate(arrays):
        if with_rows:
            out[row, : array.shape[0], : array.shape[1]] = array
        else:
            out[row, : array.shape[0]] = array
    return out
