"""Reverse complement against Biopython, masks that are reversed with it, and loss weights of residues."""

from __future__ import annotations

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from ds4sci.data.language.sequence_transform import complement, draw_strand, residue_weights, reverse_complement

IUPAC = "ACGTRYSWKMBDHVNacgtryswkmbdhvn-"
nucleotides = st.text(IUPAC, max_size=200)


def array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


@given(nucleotides)
def test_equals_biopython_and_is_its_own_inverse(text: str) -> None:
    letters = array(text)
    mask = np.arange(len(letters)) % 3 == 0
    reverse, reversed_mask = reverse_complement(letters, mask)
    assert reverse.tobytes().decode() == str(Seq(text).reverse_complement())
    assert complement(letters).tobytes().decode() == str(Seq(text).complement())
    original, original_mask = reverse_complement(reverse, reversed_mask)
    np.testing.assert_array_equal(original, letters)
    np.testing.assert_array_equal(original_mask, mask)


def test_uracil_and_letters_without_a_complement() -> None:
    assert complement(array("UuAa")).tobytes() == b"AaTt"
    with pytest.raises(ValueError, match=r"'E' at position 3 is not an IUPAC nucleotide"):
        reverse_complement(array("ACGE"))
    with pytest.raises(ValueError, match="a mask of 2 for 4 letters"):
        reverse_complement(array("ACGT"), np.zeros(2))


def test_labels_with_more_axes_are_reversed_with_the_letters() -> None:
    values = np.arange(8).reshape(4, 2)
    letters, reversed_mask = reverse_complement(array("AACG"), values)
    assert letters.tobytes() == b"CGTT"
    np.testing.assert_array_equal(reversed_mask, values[::-1])


def test_half_of_the_strands_are_reversed_reproducibly() -> None:
    letters = array("AACG")

    def draws(seed: int) -> list[bytes]:
        rng = np.random.default_rng(seed)
        return [draw_strand(rng, letters)[0].tobytes() for _ in range(2000)]

    first = draws(1)
    assert first == draws(1)
    assert set(first) == {b"AACG", b"CGTT"}
    assert abs(first.count(b"CGTT") / 2000 - 0.5) < 0.05
    always = np.random.default_rng(0)
    assert draw_strand(always, letters, probability=1)[0].tobytes() == b"CGTT"
    assert draw_strand(always, letters, probability=0)[0] is letters
    # Both outcomes draw one number, so later draws do not depend on the outcome.
    assert always.random() == np.random.default_rng(0).random(3)[2]
    with pytest.raises(ValueError, match="expected 0 to 1"):
        draw_strand(always, letters, probability=1.5)


def test_weights_by_mask() -> None:
    soft = np.array([False, True, False, True])
    unknown = np.array([False, False, True, True])
    weights = residue_weights(soft, unknown, soft_masked_weight=0.1, unknown_weight=0.5)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [1, 0.1, 0.5, 0.1])
    np.testing.assert_allclose(residue_weights(soft, unknown), [1, 1, 0, 0])
    with pytest.raises(ValueError, match="soft_masked_weight = -1"):
        residue_weights(soft, unknown, soft_masked_weight=-1)
    with pytest.raises(ValueError, match="must have one shape"):
        residue_weights(soft, unknown[:2])
