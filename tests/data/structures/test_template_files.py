"""Templates from structures and alignments, their files, and templates in chain sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.data.structures.chain_file import concatenate, drop_empty_arrays, pack_all_arrays
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.template_files import align_templates, read_templates, write_templates
from ds4sci.types import RESIDUES, Record, TemplateSet
from tests.support.fold_run import CHAINS
from tests.support.template_batches import with_templates


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))[:4]


def assert_equal(found: TemplateSet | None, expected: TemplateSet | None, atol: float = 0.0) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.names == expected.names
        np.testing.assert_array_equal(found.aatype, expected.aatype)
        np.testing.assert_array_equal(found.atom_mask, expected.atom_mask)
        np.testing.assert_allclose(found.atom_positions, expected.atom_positions, atol=atol)


def test_structures_are_aligned_by_indices(records: list[Record], tmp_path: Path) -> None:
    first, second = records[:2]
    alignment = np.array([-1, 3, 4, -1, 6])
    made = align_templates(5, [(first, alignment), (second, np.arange(5))])
    assert made.names == (first.id, second.id)
    assert made.aatype[0, [0, 3]].tolist() == [GAP, GAP]
    assert [RESIDUES[code] for code in made.aatype[0, [1, 2, 4]]] == [first.sequence[i] for i in (3, 4, 6)]
    np.testing.assert_array_equal(made.atom_positions[0, 4], first.atom_positions[6] * first.atom_mask[6, :, None])
    assert not made.atom_mask[0, [0, 3]].any()
    np.testing.assert_array_equal(made.atom_mask[1], second.atom_mask[:5])
    write_templates(tmp_path / "q.npz", made)
    assert_equal(read_templates(tmp_path / "q.npz", 5), made)


def test_alignments_that_do_not_fit_are_refused(records: list[Record]) -> None:
    with pytest.raises(ValueError, match=rf"{records[0].id}: the alignment must be 5 integers; got int64 \(4,\)"):
        align_templates(5, [(records[0], np.arange(4))])
    with pytest.raises(ValueError, match="indices outside -1 … "):
        align_templates(2, [(records[0], np.array([0, 10_000]))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"aatype": np.zeros((1, 3), np.uint8)}, r"aatype is uint8 \(1, 3\); expected \(1, 4\) for 4 residues"),
        ({"aatype": np.full((1, 4), 22)}, r"aatype has values outside 0 … 21"),
        ({"atom_mask": np.zeros((1, 4, 37), bool)}, "one has no atoms; leave it out"),
        ({"atom_positions": np.full((1, 4, 37, 3), np.nan)}, "coordinates that are not finite"),
        ({"names": np.array([{"a": 1}], object)}, "not a file of templates"),
    ],
)
def test_damaged_files_are_named(change: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    arrays = {
        "names": np.array(["one"]), "aatype": np.zeros((1, 4), np.uint8),
        "atom_positions": np.zeros((1, 4, 37, 3), np.float32), "atom_mask": np.ones((1, 4, 37), bool),
    }  # fmt: skip
    np.savez(tmp_path / "q.npz", **arrays)
    read_templates(tmp_path / "q.npz", 4)
    np.savez(tmp_path / "q.npz", **arrays | change)
    with pytest.raises(ValueError, match=words) as caught:
        read_templates(tmp_path / "q.npz", 4)
    assert str(tmp_path / "q.npz") in str(caught.value)


def test_chain_sets_store_templates(records: list[Record], tmp_path: Path) -> None:
    given = [
        with_templates(one, count, seed=count) if count else one
        for one, count in zip(records, (2, 0, 5, 1), strict=True)
    ]
    ChainSet.write(tmp_path / "set.npz", given)
    for stored in (ChainSet.open(tmp_path / "set.npz"), ChainSet.from_records(given)):
        for number in (2, 0, 1, 3):
            assert_equal(stored[number].templates, given[number].templates, atol=0.0051)
    joined = drop_empty_arrays(concatenate([pack_all_arrays(given[:1]), pack_all_arrays(given[1:])]))
    for number, record in enumerate(given):
        assert_equal(ChainSet(joined)[number].templates, record.templates, atol=0.0051)
    without = drop_empty_arrays(pack_all_arrays([replace(one, templates=None) for one in given]))
    assert not [key for key in without if key.startswith("template")]
