"""Pairing of alignments by species, compared with AlphaFold-Multimer's own functions; every row is accounted for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ds4sci.chemistry.chains import chain_name, chain_slices, number_chains, separate_chains
from ds4sci.chemistry.residue_codes import GAP, decode
from ds4sci.data.alignments import pairing
from ds4sci.data.alignments.pairing import ChainAlignments, join_alignments, pair_rows, species
from ds4sci.types import ChainIds, Msa
from tests.support.alphafold_pairing import CASES, FIXTURE, synthetic_entities


@pytest.mark.parametrize("case", CASES)
def test_equal_to_alphafold(case: str) -> None:
    with np.load(FIXTURE) as file:
        expected = {name.partition("/")[2]: file[name] for name in file if name.startswith(f"{case}/")}
    entities, given = synthetic_entities(case), CASES[case]
    msa, counts = join_alignments(
        [ChainAlignments(*one) for one in entities], given["chains"], max_rows=given.get("max_rows", pairing.MAX_ROWS)
    )
    np.testing.assert_array_equal(msa.sequences, expected["sequences"])
    np.testing.assert_array_equal(msa.deletions, expected["deletions"])
    ids = number_chains([decode(entities[entity][0].sequences[0]) for entity in given["chains"]])
    for name in ("asym_id", "entity_id", "sym_id"):
        np.testing.assert_array_equal(getattr(ids, name), expected[name])
    assert len(msa.names) == len(msa.sequences)
    for one in counts:
        rows = entities[one.entity - 1][one.kind == "pairing"].names
        assert one.rows == len(rows) == one.kept + sum(one.excluded.values())
    if case == "large_species":
        assert any(one.excluded[pairing.LARGE_SPECIES] > pairing.MAX_SPECIES_ROWS for one in counts)


def rows_of(*pairs: tuple[str, str]) -> Msa:
    """An alignment of (name, letters)."""
    letters = np.array([["ARNDCQEGHILKMFPSTWYVX-".index(letter) for letter in row] for _, row in pairs], np.uint8)
    return Msa(letters, np.zeros(letters.shape, np.int32), tuple(name for name, _ in pairs))


def test_rows_and_reasons_of_a_small_complex() -> None:
    first = rows_of(
        ("a", "AAAA"), ("tr|Q00001|Q00001_HUMAN", "ARRA"), ("sp|Q00002|ACT_HUMAN/3-8", "AAAR"), ("UniRef1", "RRRR"),
        ("tr|Q00003|Q00003_MOUSE", "A-AA"), ("tr|Q00004|Q00004_YEAST", "RRAA"),
    )  # fmt: skip
    second = rows_of(("b", "NN"), ("tr|P00001|P00001_HUMAN", "ND"), ("tr|P00002|P00002_MOUSE", "DD"))
    assert pair_rows([first, second]).tolist() == [[0, 0], [2, 1], [4, 2]]
    msa, counts = join_alignments([ChainAlignments(first), ChainAlignments(second)], [0, 1])
    assert [decode(row) for row in msa.sequences] == [
        "AAAANN", "AAARND", "A-AADD", "ARRA--", "RRRR--", "RRAA--",
    ]  # fmt: skip
    assert msa.names[:3] == (
        "a+b", "sp|Q00002|ACT_HUMAN/3-8+tr|P00001|P00001_HUMAN", "tr|Q00003|Q00003_MOUSE+tr|P00002|P00002_MOUSE",
    )  # fmt: skip
    assert [one.as_json() for one in counts] == [
        {"entity": 1, "kind": "pairing", "rows": 6, "kept": 3,
         "excluded": {pairing.NO_PARTNER: 1, pairing.NO_SPECIES: 1, pairing.OTHER_SPECIES: 1}},
        {"entity": 1, "kind": "unpaired", "rows": 6, "kept": 3, "excluded": {pairing.IN_PAIRED: 3}},
        {"entity": 2, "kind": "pairing", "rows": 3, "kept": 3, "excluded": {}},
        {"entity": 2, "kind": "unpaired", "rows": 3, "kept": 0, "excluded": {pairing.IN_PAIRED: 3}},
    ]  # fmt: skip


def test_a_species_of_two_of_three_chains_has_gaps_in_the_third() -> None:
    human, mouse = "tr|Q00001|Q00001_HUMAN", "tr|Q00002|Q00002_MOUSE"
    chains = [
        rows_of(("a", "AA"), (human, "AR")), rows_of(("b", "NNN"), (mouse, "NND")),
        rows_of(("c", "Q"), (human, "E"), (mouse, "G")),
    ]  # fmt: skip
    msa, _ = join_alignments([ChainAlignments(one) for one in chains], [0, 1, 2])
    assert [decode(row) for row in msa.sequences] == ["AANNNQ", "AR---E", "--NNDG"]


def test_products_of_row_numbers_do_not_overflow() -> None:
    """Ten chains of 500 rows: 499¹⁰ exceeds 64 bits, where AlphaFold's order becomes arbitrary."""
    letters = np.full((500, 2), 3, np.uint8)
    letters[:, 0] = np.arange(500) % 20
    names = ("query", *(f"tr|Q{row:05d}|Q{row:05d}_S{row}" for row in range(1, 500)))
    one = Msa(letters, np.zeros(letters.shape, np.int32), names)
    assert (pair_rows([one] * 10)[:, 0] == np.arange(500)).all()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tr|A0A146SKV9|A0A146SKV9_FUNHE", "FUNHE"), ("sp|P0C2L1|A3X1_LOXLA/12-90", "LOXLA"),
        ("tr|P0C2L1_0|P0C2L1_9HYPO_1", "9HYPO"), ("UniRef100_A0A146SKV9", ""), ("tr|A0A1|A0A1_HUMAN", ""),
        ("sp|P0C2L1|A3X1_TOOLONG", ""), ("tr|A0A146SKV9|A0A146SKV9", ""), ("", ""),
    ],
)  # fmt: skip
def test_species_of_a_row_name(name: str, code: str) -> None:
    assert species(name) == code


def test_numbers_and_names_of_chains() -> None:
    ids = number_chains(["AG", "C", "AG", "W", "C"])
    assert ids.asym_id.tolist() == [1, 1, 2, 3, 3, 4, 5]
    assert ids.entity_id.tolist() == [1, 1, 2, 1, 1, 3, 2]
    assert ids.sym_id.tolist() == [1, 1, 1, 2, 2, 1, 2]
    assert [(one.start, one.stop) for one in chain_slices(ids.asym_id)] == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
    names = [chain_name(number) for number in range(1, 62 * 63 + 1)]
    assert len(set(names)) == len(names)
    assert [names[at] for at in (0, 25, 26, 61, 62, 63, -1)] == ["A", "Z", "a", "9", "AA", "AB", "99"]
    assert Counter(map(len, names)) == {1: 62, 2: 62 * 62}
    with pytest.raises(ValueError, match="no chain may be empty"):
        number_chains(["A", ""])


def test_residue_numbers_of_separate_chains() -> None:
    index = np.array([0, 1, 4, 0, 1])
    assert separate_chains(index, None) is index
    ids = ChainIds(*(np.array([1, 1, 1, 2, 2]) for _ in range(3)))
    assert separate_chains(index, ids).tolist() == [0, 1, 4, 1004, 1005]


def test_gaps_of_chains_without_a_row() -> None:
    entities = synthetic_entities("heterodimer")
    msa, counts = join_alignments([ChainAlignments(*one) for one in entities], [0, 1])
    paired = max(one.kept for one in counts if one.kind == "pairing")
    below = msa.sequences[paired:]
    assert len(below) == sum(one.kept for one in counts if one.kind == "unpaired")
    assert ((below[:, :12] == GAP).all(1) != (below[:, 12:] == GAP).all(1)).all()
