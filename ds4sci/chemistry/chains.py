"""Numbers and names of the chains of a complex."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ds4sci.types import ChainIds

NAME_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""One-letter names of chains, in order: all that fit the chain column of the PDB format."""

CHAIN_JUMP = 1000
"""Residue numbers between two chains in ``separate_chains``: more than any cut-off of a sequence separation."""


def number_chains(sequences: Sequence[str]) -> ChainIds:
    """Return the chain numbers of a complex of these chains (AlphaFold-Multimer, section 7.1).

    Chains keep their order. Equal sequences are copies of one entity; entities count in the order of their first chain.
    Raises ValueError without chains, or for an empty chain.
    """
    if not sequences or not all(sequences):
        raise ValueError("a complex needs at least one chain, and no chain may be empty")
    copies: dict[str, int] = {}
    numbers = []
    for asym, (sequence, entity) in enumerate(zip(sequences, entity_numbers(sequences), strict=True), start=1):
        copies[sequence] = copies.get(sequence, 0) + 1
        numbers.append((asym, entity, copies[sequence]))
    lengths = [len(sequence) for sequence in sequences]
    asym_id, entity_id, sym_id = (np.repeat(np.array(one, np.int64), lengths) for one in zip(*numbers, strict=True))
    return ChainIds(asym_id, entity_id, sym_id)


def entity_numbers(sequences: Sequence[str]) -> list[int]:
    """Return the number of the entity of each chain: from 1, in the order of their first chains."""
    entity_of: dict[str, int] = {}
    return [entity_of.setdefault(sequence, len(entity_of) + 1) for sequence in sequences]


def chain_slices(asym_id: np.ndarray) -> list[slice]:
    """Return the residues of each chain; those of a chain follow each other."""
    if not len(asym_id):
        return []
    edges = [0, *(np.flatnonzero(np.diff(asym_id)) + 1).tolist(), len(asym_id)]
    return [slice(begin, end) for begin, end in pairwise(edges)]


def chain_name(number: int) -> str:
    """Return the name of chain ``number`` ≥ 1: A … Z, a … z, 0 … 9, then two letters, AA, AB, and so on."""
    if number < 1:
        raise ValueError(f"chains count from 1; got {number}")
    name = ""
    while number:
        number, digit = divmod(number - 1, len(NAME_LETTERS))
        name = NAME_LETTERS[digit] + name
    return name


def separate_chains(residue_index: np.ndarray, chain_ids: ChainIds | None) -> np.ndarray:
    """Return residue numbers in which chains are far apart, for functions that find bonds and neighbours by them.

    Within a chain, differences stay as they are; the first residue of a chain is ``CHAIN_JUMP`` after the last residue
    of the chain before it. Without ``chain_ids`` these are the given numbers.
    """
    index = np.asarray(residue_index)
    if chain_ids is None:
        return index
    result = index.astype(np.int64)
    slices = chain_slices(chain_ids.asym_id)
    for before, own in pairwise(slices):
        result[own] += result[before.stop - 1] + CHAIN_JUMP - index[own.start]
    return result
