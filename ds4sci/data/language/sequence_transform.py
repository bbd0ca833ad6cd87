"""What is done to sequences between store and tokenizer: the other strand, and weights of residues. numpy only."""

from __future__ import annotations

import numpy as np

_PAIRS = ("AT", "CG", "RY", "KM", "BV", "DH", "SS", "WW", "NN", "--", "..")
"""IUPAC's nucleotide codes and their complements (Cornish-Bowden 1985), and gaps."""


def _table() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for pair in _PAIRS:
        for a, b in (tuple(pair), tuple(pair[::-1])):
            table[ord(a)], table[ord(a.lower())] = ord(b), ord(b.lower())
    table[ord("U")], table[ord("u")] = ord("A"), ord("a")  # RNA's U; the other strand is written as DNA
    return table


_COMPLEMENT = _table()


def complement(letters: np.ndarray) -> np.ndarray:
    """uint8 [n]: the base opposite each of the ASCII ``letters`` uint8 [n], in the same order and the same case.

    IUPAC codes become the code of the opposite bases, gaps stay. ``ValueError`` names the first letter that is none.
    """
    opposite = _COMPLEMENT[letters]
    if len(opposite) and not opposite.min():
        at = int(np.argmin(opposite))
        raise ValueError(
            f"{chr(letters[at])!r} at position {at} is no nucleotide (IUPAC), so it has no complement;"
            " proteins have no other strand: leave reverse-complement augmentation off"
        )
    return opposite


def reverse_complement(letters: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """The other strand, read in its own direction, and ``masks`` (or weights, labels: anything [n, …]) turned with it.

    Returns (letters uint8 [n], *masks), new arrays. Twice gives the first letters again, but for U, which comes back T.
    """
    for mask in masks:
        if len(mask) != len(letters):
            raise ValueError(f"a mask of {len(mask)} for {len(letters)} letters: expected one value a letter")
    return complement(letters)[::-1].copy(), *(mask[::-1].copy() for mask in masks)


def draw_strand(
    rng: np.random.Generator, letters: np.ndarray, *masks: np.ndarray, probability: float = 0.5
) -> tuple[np.ndarray, ...]:
    """The other strand with ``probability``, else ``letters`` and ``masks`` as they are (not copied).

    One draw from ``rng`` either way, so that what is drawn next does not depend on the outcome.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability = {probability}: expected 0 to 1")
    return reverse_complement(letters, *masks) if rng.random() < probability else (letters, *masks)


def residue_weights(
    soft: np.ndarray, unknown: np.ndarray, *, soft_masked_weight: float = 1.0, unknown_weight: float = 0.0
) -> np.ndarray:
    """float32 [n], how much each residue counts in the loss.

    soft     bool [n], True = soft-masked (a repeat, low complexity): ``soft_masked_weight``
    unknown  bool [n], True = N or X: ``unknown_weight``; a residue that is both gets the smaller of the two

    The weights are those of the letters to be predicted; ``ValueError`` for a negative weight.
    """
    if soft.shape != unknown.shape:
        raise ValueError(f"soft mask {list(soft.shape)} and unknown mask {list(unknown.shape)} must have one shape")
    for name, weight in (("soft_masked_weight", soft_masked_weight), ("unknown_weight", unknown_weight)):
        if not 0 <= weight < np.inf:
            raise ValueError(f"{name} = {weight}: expected a number ≥ 0 (0 leaves such residues out of the loss)")
    weights = np.ones(soft.shape, np.float32)
    weights[soft] = soft_masked_weight
    weights[unknown] = np.minimum(np.where(soft[unknown], soft_masked_weight, np.inf), unknown_weight)
    return weights
