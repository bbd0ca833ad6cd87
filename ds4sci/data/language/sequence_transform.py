"""Transforms of sequences between store and tokenizer: reverse complement and loss weights. numpy only."""

from __future__ import annotations

import numpy as np

_COMPLEMENT_PAIRS = ("AT", "CG", "RY", "KM", "BV", "DH", "SS", "WW", "NN", "--", "..")
"""IUPAC nucleotide codes and their complements (Cornish-Bowden 1985), and gaps."""


def _complement_table() -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for pair in _COMPLEMENT_PAIRS:
        for a, b in (tuple(pair), tuple(pair[::-1])):
            table[ord(a)], table[ord(a.lower())] = ord(b), ord(b.lower())
    table[ord("U")], table[ord("u")] = ord("A"), ord("a")  # RNA's U; the complement is written as DNA
    return table


_COMPLEMENT = _complement_table()


def complement(letters: np.ndarray) -> np.ndarray:
    """uint8 [n]: complementary base of each of the ASCII ``letters`` uint8 [n], in the same order and case.

    An IUPAC code becomes the code of the complementary bases; gaps stay. ``ValueError`` names the first letter that is
    not a nucleotide.
    """
    opposite = _COMPLEMENT[letters]
    if len(opposite) and not opposite.min():
        at = int(np.argmin(opposite))
        raise ValueError(
            f"{chr(letters[at])!r} at position {at} is not an IUPAC nucleotide, so it has no complement;"
            " turn reverse-complement augmentation off for proteins"
        )
    return opposite


def reverse_complement(letters: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reverse complement of ``letters``, and ``masks`` (or weights, or labels; [n, …]) reversed along the first axis.

    Returns (letters uint8 [n], *masks) as new arrays. Applied twice, it returns the original letters, except that U
    becomes T.
    """
    for mask in masks:
        if len(mask) != len(letters):
            raise ValueError(f"a mask of {len(mask)} for {len(letters)} letters: expected one value per letter")
    return complement(letters)[::-1].copy(), *(mask[::-1].copy() for mask in masks)


def draw_strand(
    rng: np.random.Generator, letters: np.ndarray, *masks: np.ndarray, probability: float = 0.5
) -> tuple[np.ndarray, ...]:
    """The reverse complement with ``probability``, otherwise ``letters`` and ``masks`` unchanged (not copied).

    Draws one number from ``rng`` in both cases, so that later draws do not depend on the outcome.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability = {probability}: expected 0 to 1")
    return reverse_complement(letters, *masks) if rng.random() < probability else (letters, *masks)


def residue_weights(
    soft: np.ndarray, unknown: np.ndarray, *, soft_masked_weight: float = 1.0, unknown_weight: float = 0.0
) -> np.ndarray:
    """float32 [n], loss weight of each residue.

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
