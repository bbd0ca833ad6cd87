"""Selection, crop and padding of templates."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.template_features import ABSENT
from ds4sci.types import Features, Record
from tests.support.fold_run import CHAINS
from tests.support.template_batches import with_templates


@pytest.fixture(scope="module")
def record() -> Record:
    return ChainSet.open(CHAINS)[3]


def features(record: Record, seed: int = 0, crop: int | None = None, **settings: object) -> Features:
    rng = np.random.default_rng(seed)
    return featurize(record, FeatureConfig.model_validate({"max_templates": 4} | settings), rng, crop=crop)


def test_the_first_templates_are_taken_in_evaluations(record: Record) -> None:
    given = with_templates(record, 6).templates
    assert given is not None
    got = features(with_templates(record, 6), subsample_templates=False)
    np.testing.assert_array_equal(got.template_aatype, given.aatype[:4])
    np.testing.assert_array_equal(got.template_positions, given.atom_positions[:4])
    np.testing.assert_array_equal(got.template_atom_mask, given.atom_mask[:4])
    assert got.template_mask.tolist() == [True] * 4


def test_fewer_templates_are_followed_by_absent_ones(record: Record) -> None:
    for count, one in ((2, with_templates(record, 2)), (0, record)):
        got = features(one, subsample_templates=False)
        assert got.template_mask.tolist() == [True] * count + [False] * (4 - count)
        assert (got.template_aatype[count:] == ABSENT).all()
        assert not got.template_atom_mask[count:].any()
        assert not got.template_positions[count:].any()


def test_training_draws_their_number_and_order(record: Record) -> None:
    """The number is min(u, 4) with u uniform in 0 … 20; only the first 20 of 25 templates are drawn, each at most
    once."""
    many = with_templates(record, 25)
    assert many.templates is not None
    marked = np.arange(25, dtype=np.float32)[:, None, None, None] + np.zeros_like(many.templates.atom_positions)
    mask = np.ones_like(many.templates.atom_mask)
    many = replace(many, templates=replace(many.templates, atom_positions=marked, atom_mask=mask))
    drawn, numbers = Counter(), Counter()
    for seed in range(1000):
        got = features(many, seed, crop=8)
        chosen = got.template_positions[got.template_mask, 0, 0, 0].astype(int).tolist()
        assert len(set(chosen)) == len(chosen) == got.template_mask.sum()
        assert got.template_mask.tolist() == sorted(got.template_mask.tolist(), reverse=True)
        drawn.update(chosen)
        numbers[len(chosen)] += 1
    assert set(drawn) == set(range(20))
    assert max(drawn.values()) < 1.5 * min(drawn.values())
    assert set(numbers) == {0, 1, 2, 3, 4}
    assert numbers[4] == pytest.approx(1000 * 17 / 21, rel=0.1)


def test_the_crop_is_that_of_the_chain(record: Record) -> None:
    many = with_templates(record, 4)
    assert many.templates is not None
    for seed in range(3):
        got = features(many, seed, crop=11, subsample_templates=False)
        start = int(got.residue_index[0]) - int(record.residue_index[0])
        np.testing.assert_array_equal(got.template_positions, many.templates.atom_positions[:, start : start + 11])
        np.testing.assert_array_equal(got.template_aatype, many.templates.aatype[:, start : start + 11])


def test_other_features_are_the_same_with_templates(record: Record) -> None:
    plain, other = features(record, 5, crop=16, max_templates=0), features(with_templates(record, 3), 5, crop=16)
    assert plain.template_aatype is None
    for name in ("aatype", "msa_feat", "masked_msa", "atom_positions"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))


def test_batches_are_padded_with_gaps(record: Record) -> None:
    short, long = (features(with_templates(record, 2), crop=crop, subsample_templates=False) for crop in (9, 12))
    batch = collate([short, long])
    assert batch.template_aatype is not None
    assert batch.template_positions is not None
    assert batch.template_mask is not None
    assert batch.template_aatype.shape == (2, 4, 12)
    assert batch.template_positions.shape == (2, 4, 12, 37, 3)
    assert (batch.template_aatype[0, :, 9:] == GAP).all()
    assert not batch.template_positions[0, :, 9:].any()
    assert batch.template_mask.tolist() == [[True, True, False, False]] * 2
    assert collate([features(record, max_templates=0)]).template_aatype is None
    with pytest.raises(ValueError, match="some examples of a batch have templates and others have none"):
        collate([short, features(record, crop=9, max_templates=0)])


def test_templates_of_another_length_are_refused(record: Record) -> None:
    wrong = replace(record, templates=with_templates(ChainSet.open(CHAINS)[4], 2).templates)
    assert len(ChainSet.open(CHAINS)[4].sequence) != len(record.sequence)
    with pytest.raises(ValueError, match=rf"{record.id}: templates.aatype has the shape .* expected \(2, "):
        features(wrong)


def test_the_draw_depends_on_the_seed_only(record: Record) -> None:
    many = with_templates(record, 8)
    same, again, other = (features(many, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(same.template_positions, again.template_positions)
    assert not all(np.array_equal(a.template_positions, b.template_positions) for a, b in pairwise([same, other]))
