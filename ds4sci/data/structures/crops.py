"""Crops of training examples: consecutive residues of a chain, and the two crops of complexes of AlphaFold-Multimer.

Source: Evans et al. 2021, section 7.2, Algorithms 1 and 2.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from ds4sci.chemistry.chains import chain_slices
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.types import ChainIds, Record

Window = slice | np.ndarray
"""Residues of a crop: a slice of a chain, or increasing residue numbers of a complex."""

_CA = ATOM37_INDEX["CA"]
_TIE = 1e-3
"""Å per residue, added to distances so that equal ones have an order (Algorithm 2)."""


def crop_chain(atom_mask: np.ndarray, crop: int, rng: np.random.Generator) -> slice:
    """Return ``crop`` consecutive residues of a longer chain.

    The start is uniform over the windows that contain at least one residue with N, CA and C.
    """
    _check(crop)
    resolved = np.concatenate([[0], np.cumsum(atom_mask[:, :3].all(1))])
    starts = np.flatnonzero(resolved[crop:] > resolved[:-crop])
    start = int(rng.choice(starts)) if len(starts) else int(rng.integers(len(atom_mask) - crop + 1))
    return slice(start, start + crop)


def crop_complex(
    record: Record, crop: int, rng: np.random.Generator, *, spatial: float = 0.5, interface: float = 10.0
) -> np.ndarray:
    """Return ``crop`` residues of a longer complex, int64 [crop], in their order.

    With the probability ``spatial`` the crop is around a residue of an interface (``spatial_crop``), chosen uniformly;
    without an interface, and otherwise, it is ``contiguous_crop``. If that has no residue with N, CA and C, the crop is
    around one that has.
    """
    _check(crop)
    assert record.chain_ids is not None
    if rng.random() < spatial:
        centres = interface_residues(record, interface)
        if len(centres):
            return spatial_crop(record, int(rng.choice(centres)), crop)
    chosen = contiguous_crop(record.chain_ids, crop, rng)
    resolved = np.asarray(record.atom_mask[:, :3].all(axis=1))
    if resolved[chosen].any() or not resolved.any():
        return chosen
    return spatial_crop(record, int(rng.choice(np.flatnonzero(resolved))), crop)


def contiguous_crop(chain_ids: ChainIds, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Return consecutive residues of chains in random order, ``crop`` in total (Algorithm 1).

    The number of residues of each chain is uniform between what is needed to fill the crop with the chains after it and
    what the crop has left; the start in the chain is uniform. A chain may have no residue.
    """
    chains = chain_slices(chain_ids.asym_id)
    left, after = crop, len(chain_ids.asym_id)
    parts = []
    for number in rng.permutation(len(chains)):
        own = chains[number]
        length = own.stop - own.start
        after -= length
        size = int(rng.integers(min(length, max(0, left - after)), min(left, length) + 1))
        left -= size
        start = own.start + int(rng.integers(length - size + 1))
        parts.append(np.arange(start, start + size))
    return np.sort(np.concatenate(parts))


def spatial_crop(record: Record, centre: int, crop: int) -> np.ndarray:
    """Return the ``crop`` residues whose CA are nearest to that of residue ``centre`` (Algorithm 2), in their order.

    Residues without CA come last.
    """
    ca = record.atom_positions[:, _CA].astype(np.float64)
    distance = np.where(record.atom_mask[:, _CA], np.linalg.norm(ca - ca[centre], axis=1), np.inf)
    order = np.argsort(distance + _TIE * np.arange(len(ca)), kind="stable")
    return np.sort(order[:crop])


def interface_residues(record: Record, distance: float) -> np.ndarray:
    """Return the residues with CA that have an atom closer than ``distance`` Å to an atom of another chain, int64 [k].

    Without ``chain_ids`` there are none. Time: a search tree of the atoms of each chain.
    """
    if record.chain_ids is None:
        return np.zeros(0, np.int64)
    residue, column = np.nonzero(record.atom_mask)
    points = record.atom_positions[residue, column]
    chains = chain_slices(record.chain_ids.asym_id)
    edges = np.searchsorted(residue, [0, *(own.stop for own in chains)])
    parts = [slice(*ends) for ends in pairwise(edges.tolist())]
    trees = [cKDTree(points[own]) if own.stop > own.start else None for own in parts]
    close = np.zeros(len(points), bool)
    for own, tree in zip(parts, trees, strict=True):
        for other in trees:
            if tree is not None and other is not None and other is not tree:
                nearest, _ = other.query(points[own], distance_upper_bound=distance)
                close[own] |= np.isfinite(nearest)
    found = np.unique(residue[close])
    return found[record.atom_mask[found, _CA]]


def _check(crop: int) -> None:
    if crop < 1:
        raise ValueError(f"crop must be at least 1 residue; got {crop}")
