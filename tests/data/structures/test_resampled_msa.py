"""Samples of the alignment for recycling passes: contents, distribution, and the features that are made of them."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from ds4sci.data.loader import make_pass_rng
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize, is_resampled
from ds4sci.data.structures.synthetic import synthetic_chain
from ds4sci.models.msa_samples import batch_of_pass
from ds4sci.types import ChainIds, Features, Msa, Record

PASSES = 3
SAMPLED = {
    "msa": {"msa_input": "msa", "max_clusters": 5, "max_extra": 9},
    "every row": {"msa_input": "msa", "max_clusters": 5, "max_extra": 99},
    "profile": {"msa_input": "profile"},
    "sequence": {"msa_input": "sequence"},
}


def chain(n: int = 31, depth: int = 24, seed: int = 0) -> Record:
    """A chain with an alignment of ``depth`` different rows, with gaps and deletions."""
    rng = np.random.default_rng(seed)
    record = synthetic_chain(n, depth, rng)
    assert record.msa is not None
    deletions = rng.poisson(0.3, (depth, n)).astype(np.int32)
    return replace(record, msa=replace(record.msa, deletions=deletions))


def make(record: Record, settings: FeatureConfig, passes: int = PASSES, **more: object) -> Features:
    arguments = {"earlier_passes": passes, "pass_rng": make_pass_rng(0)} | more
    return featurize(record, settings, np.random.default_rng(7), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAMPLED)
def test_the_last_pass_has_the_features_of_a_run_without_resampling(name: str) -> None:
    settings = FeatureConfig(**SAMPLED[name])
    without = make(chain(), settings, crop=20)
    found = make(chain(), settings.model_copy(update={"resample_msa": True}), crop=20)
    assert without.earlier_msa is None
    assert found.earlier_msa is not None
    assert len(found.earlier_msa) == PASSES
    for field in fields(Features):
        if field.name != "earlier_msa":
            np.testing.assert_array_equal(getattr(without, field.name), getattr(found, field.name))
    assert make(chain(), settings.model_copy(update={"resample_msa": True}), 0).earlier_msa is None


@pytest.mark.parametrize("on_request", [False, True])
@pytest.mark.parametrize("name", SAMPLED)
def test_a_pass_has_the_features_that_its_generator_draws(name: str, on_request: bool) -> None:
    """Bit by bit, in a padded batch: ``featurize`` of the whole chain with the generator of the pass."""
    settings = FeatureConfig(**SAMPLED[name], resample_msa=True)
    records = [chain(31), chain(19, 8, seed=1)]
    examples = [make(record, settings, on_request=on_request) for record in records]
    batch = pickle.loads(pickle.dumps(collate(examples, recycling=PASSES)))  # as sent between pipeline stages
    seen = [batch.msa_feat]
    for number in range(PASSES):
        given = batch_of_pass(batch, number)
        wanted = collate([featurize(record, settings, make_pass_rng(0)(number)) for record in records])
        assert torch.equal(given.msa_feat, wanted.msa_feat)
        assert torch.equal(given.extra_msa_feat, wanted.extra_msa_feat)
        assert torch.equal(given.msa_mask, wanted.msa_mask)
        assert torch.equal(given.extra_msa_mask, wanted.extra_msa_mask)
        changed = {key for key, value in vars(given).items() if value is not getattr(batch, key)}
        assert changed == {"msa_feat", "extra_msa_feat"}, "templates, targets and masks are not resampled"
        assert not any(torch.equal(given.msa_feat, other) for other in seen)
        seen.append(given.msa_feat)


def test_every_sequence_is_a_cluster_or_extra_and_the_query_is_first() -> None:
    record = chain()
    assert record.msa is not None
    settings = FeatureConfig(**SAMPLED["every row"], resample_msa=True, masked_msa_probability=0.0)
    names = {row.tobytes(): at for at, row in enumerate(record.msa.sequences)}
    depth = len(names)
    assert depth == len(record.msa.sequences)
    rounds = 400
    centres: Counter[int] = Counter()
    first_extra: Counter[int] = Counter()
    samples = make(record, settings, rounds).earlier_msa
    assert samples is not None
    for sample in samples:
        chosen = [names[row.tobytes()] for row in sample.letters]
        others = [names[row.tobytes()] for row in sample.extra_letters]
        assert chosen[0] == 0
        assert len(chosen) == 5
        assert sorted(chosen + others) == list(range(depth))
        centres.update(chosen[1:])
        first_extra.update(others[:1])
    for counts, share in ((centres, 4 / (depth - 1)), (first_extra, 1 / (depth - 1))):
        spread = 4.5 * np.sqrt(share * (1 - share) / rounds)  # 4.5 σ of a binomial fraction
        assert all(abs(counts[row] / rounds - share) < spread for row in range(1, depth))


def test_sizes_are_those_of_the_settings() -> None:
    settings = FeatureConfig(**SAMPLED["msa"], resample_msa=True)
    found = make(chain(), settings, crop=13)
    for sample in found.earlier_msa or ():
        assert sample.letters.shape == sample.deletion_values.shape == sample.deletion_means.shape == (5, 13)
        assert sample.profile.shape == (5, 13, 23)
        assert sample.extra_letters.shape == sample.extra_deletion_values.shape == (9, 13)


def test_each_pass_masks_other_residues() -> None:
    n, passes = 20_000, 4
    profile = np.zeros((n, 20), np.float32)
    profile[:, 5] = 1.0
    record = replace(fasta_records.make_record("long", "A" * n), profile=profile)
    samples = make(record, FeatureConfig(resample_msa=True, masked_msa_same=0.0), passes).earlier_msa
    masked = np.stack([sample.letters[0] != 0 for sample in samples or ()])
    share = 0.15 * (1 - 0.1 / 20)  # without those replaced by the same residue
    assert (abs(masked.mean(1) - share) < 4.5 * np.sqrt(share * (1 - share) / n)).all()
    for one in range(passes):
        for other in range(one):
            both = (masked[one] & masked[other]).mean()  # independent
            assert abs(both - share**2) < 4.5 * np.sqrt(share**2 * (1 - share**2) / n)


def test_an_alignment_that_fits_without_masking_has_one_sample() -> None:
    settings = FeatureConfig(msa_input="msa", max_clusters=24, masked_msa_probability=0.0, resample_msa=True)
    assert make(chain(depth=24), settings).earlier_msa is None
    assert make(chain(depth=25), settings).earlier_msa is not None
    masked = settings.model_copy(update={"masked_msa_probability": 0.1})
    assert make(chain(depth=24), masked).earlier_msa is not None
    assert not is_resampled(fasta_records.make_record("single", "ACDEF"), settings)


def test_a_batch_mixes_examples_with_and_without_samples() -> None:
    settings = FeatureConfig(msa_input="msa", max_clusters=10, masked_msa_probability=0.0, resample_msa=True)
    shallow, deep = make(chain(31, 4), settings), make(chain(19, 24), settings)
    batch = collate([shallow, deep], recycling=PASSES)
    given = batch_of_pass(batch, 0)
    assert torch.equal(given.msa_feat[0], batch.msa_feat[0])
    assert torch.equal(given.extra_msa_feat[0], batch.extra_msa_feat[0])
    assert not torch.equal(given.msa_feat[1], batch.msa_feat[1])
    assert not torch.equal(given.extra_msa_feat[1], batch.extra_msa_feat[1])
    assert batch_of_pass(collate([shallow], recycling=PASSES), 0).earlier_msa is None
    with pytest.raises(ValueError, match=r"synthetic.*sampled for 3 recycling passes .* the batch has 4"):
        collate([shallow, deep], recycling=4)


def test_the_compact_samples_take_less_memory_than_features() -> None:
    """The figures of ``MsaSample``; rows that are not among the extra ones are not kept."""
    s, e, n = 6, 10, 30
    record = chain(2 * n, 2000)
    settings = FeatureConfig(msa_input="msa", max_clusters=s, max_extra=e, resample_msa=True)
    found = make(record, settings, 1, crop=n)
    (sample,) = found.earlier_msa or ()
    arrays = [getattr(sample, field.name) for field in fields(sample)]
    held = sum(array.nbytes if array.base is None else array.base.nbytes for array in arrays)
    assert held == (101 * s + 5 * e) * n
    assert found.msa_feat.nbytes + found.extra_msa_feat.nbytes == (196 * s + 100 * e) * n


def test_rows_without_a_partner_in_a_complex() -> None:
    """Samples of an alignment of a complex keep its gaps: nothing but the query and the paired row has both chains."""
    record = chain(12, 3)
    assert record.msa is not None
    rows = record.msa.sequences.copy()
    rows[1, 6:] = rows[2, :6] = 21
    ids = np.repeat([1, 2], 6).astype(np.int64)
    record = replace(record, msa=Msa(rows, record.msa.deletions, record.msa.names), chain_ids=ChainIds(ids, ids, ids))
    settings = FeatureConfig(msa_input="msa", max_clusters=2, resample_msa=True, masked_msa_probability=0.0)
    second = set()
    for sample in make(record, settings, 20).earlier_msa or ():
        np.testing.assert_array_equal(sample.letters[0], rows[0])
        second.add(int((sample.letters[1] == rows[1]).all()))
        assert {sample.letters[1].tobytes(), sample.extra_letters[0].tobytes()} == {
            rows[1].tobytes(),
            rows[2].tobytes(),
        }
    assert second == {0, 1}
