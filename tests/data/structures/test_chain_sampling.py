"""Training chains by cluster and length, and predicted structures among them, through the structure task."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.data import score_file
from ds4sci.data.structures.chain_filters import mask_low_confidence
from ds4sci.data.structures.chain_sampling import SamplingConfig, sampling_weights
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.losses.fold import LossConfig, sample_losses
from ds4sci.tasks.fold import Config, FoldTask
from ds4sci.types import Batch, Record
from tests.support import layouts
from tests.support.fold_run import CHAINS


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))[:9]


@pytest.fixture
def sets(records: list[Record], tmp_path: Path) -> Path:
    ChainSet.write(tmp_path / "train.npz", records[:6])
    ChainSet.write(tmp_path / "predicted.npz", [replace(one, id=f"P_{one.id}") for one in records[6:]])
    return tmp_path


def task(folder: Path, **data: Any) -> FoldTask:
    train = str(folder / "train.npz")
    features = {"msa_input": "sequence"}
    plan = {"phases": [{"crops": [16]}]}
    sections = {"train": train, "valid": train, "features": features, "plan": plan} | data
    config = Config.model_validate({"model": layouts.SMALL_FOLD, "data": sections})
    return FoldTask(config, seed=0, steps=50)


def batches(made: FoldTask, start: int, count: int, *, rank: int = 0, ranks: int = 1) -> list[Batch]:
    source = made.batches(
        start_step=start, rank=rank, world_size=ranks, micro_batch_size=4 // ranks, accumulation_steps=1
    )
    return list(islice(source, count))


def test_short_chains_of_large_clusters_are_rare(records: list[Record], tmp_path: Path) -> None:
    names, lengths = [one.id for one in records], np.array([100, 256, 400, 512, 900, 30, 300, 300, 300])
    weights = np.array([1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25])
    score_file.write_scores(tmp_path / "clusters.npz", names, {"weight": weights}, {})
    found = sampling_weights(SamplingConfig(scores=tmp_path / "clusters.npz"), names, lengths)
    expected = weights * np.array([256, 256, 400, 512, 512, 256, 300, 300, 300]) / 512
    np.testing.assert_allclose(found, expected)
    assert sampling_weights(SamplingConfig(lengths=None), names, lengths).tolist() == [1] * 9
    with pytest.raises(ValueError, match="the scores are those of another training set"):
        sampling_weights(SamplingConfig(scores=tmp_path / "clusters.npz"), names[1:], lengths[1:])
    with pytest.raises(ValueError, match="lengths must be two increasing numbers"):
        SamplingConfig(lengths=(512, 256))


def test_a_run_samples_by_cluster(sets: Path, records: list[Record]) -> None:
    weights = np.array([1, 0.5, 0.5, 0.25, 0.25, 0.5])
    names = [one.id for one in records[:6]]
    score_file.write_scores(sets / "clusters.npz", names, {"weight": weights}, {})
    made = task(sets, sampling={"scores": str(sets / "clusters.npz"), "lengths": None})
    assert made.train_samples() == 3
    counts = Counter(name for batch in batches(made, 0, 60) for name in batch.ids)
    assert counts[names[0]] == 80
    assert all(abs(counts[name] - 80 * w) < 20 for name, w in zip(names, weights, strict=True))
    later = [batch.ids for batch in batches(made, 0, 6)][4:]
    assert [batch.ids for batch in batches(made, 4, 2)] == later, "after a resume"
    with pytest.raises(ValueError, match=r"data\.pruning chooses the samples of an epoch, and so do data\.sampling"):
        batches(task(sets, sampling={}, pruning={}), 0, 1)
    assert "data.sampling" in made.fixed_inputs()


def test_predicted_structures_are_mixed_in(sets: Path) -> None:
    made = task(sets, distillation={"chains": str(sets / "predicted.npz"), "probability": 0.75})
    taken = batches(made, 0, 25)
    predicted = [name.startswith("P_") for batch in taken for name in batch.ids]
    assert sum(predicted) == 75
    for batch in taken:
        expected = [name.startswith("P_") for name in batch.ids]
        assert batch.is_predicted is None if not any(expected) else batch.is_predicted.tolist() == expected
        assert [made.sample_names()[int(number)] for number in batch.sample] == list(batch.ids)
    halves = [batches(made, 0, 5, rank=rank, ranks=2) for rank in (0, 1)]
    assert [(*a.ids, *b.ids) for a, b in zip(*halves, strict=True)] == [batch.ids for batch in taken[:5]]
    chains, at = pickle.loads(pickle.dumps((made.train_chains, made.schedule.at)))  # as worker processes get them
    assert [chains[at(p)[0]].id for p in range(20)] == [name for batch in taken[:5] for name in batch.ids]
    assert made.fixed_inputs()["data.distillation"] == "probability 0.75"
    ChainSet.write(sets / "predicted.npz", list(ChainSet.open(sets / "train.npz"))[:1])
    twice = task(sets, distillation={"chains": str(sets / "predicted.npz")})
    with pytest.raises(ValueError, match=r"is also in data\.train; chains of the two sets need different names"):
        _ = twice.train_chains


def test_predicted_structures_have_no_loss_of_confidence(sets: Path) -> None:
    made = task(sets, distillation={"chains": str(sets / "predicted.npz")})
    batch = next(b for b in batches(made, 0, 9) if b.is_predicted is not None and 0 < b.is_predicted.sum() < 4)
    assert batch.is_predicted is not None
    output = made.model(batch)
    only = {name: 0.0 for name, field in LossConfig.model_fields.items() if field.annotation is float}
    for name in ("plddt", "aligned_error", "experimentally_resolved"):
        config = LossConfig.model_validate(only | {name: 1.0, "initial_clamp": 10.0, "interface_clamp": 30.0})
        losses, _ = sample_losses(output, batch, config)
        whole, _ = sample_losses(output, replace(batch, is_predicted=None), config)
        assert torch.equal(losses[batch.is_predicted], torch.zeros_like(losses[batch.is_predicted])), name
        assert torch.equal(losses[~batch.is_predicted], whole[~batch.is_predicted]), name
        assert whole.min() > 0, name
    config = LossConfig.model_validate(
        only | {"backbone_fape": 1.0, "distogram": 1.0, "initial_clamp": 10.0, "interface_clamp": 30.0}
    )
    losses, _ = sample_losses(output, batch, config)
    assert torch.equal(losses, sample_losses(output, replace(batch, is_predicted=None), config)[0])


def test_uncertain_residues_are_masked(records: list[Record]) -> None:
    record = records[0]
    n = len(record.sequence)
    plddt = np.linspace(20, 95, n, dtype=np.float32)
    chain = replace(record, b_factors=np.where(record.atom_mask, plddt[:, None], 0).astype(np.float32))
    found = mask_low_confidence(chain, 50)
    np.testing.assert_array_equal(found.atom_mask, record.atom_mask & (plddt > 50)[:, None])
    assert not found.atom_positions[~found.atom_mask].any()
    assert found.atom_mask.any()
    for scale in (0.0, 0.01, 2.0):
        with pytest.raises(ValueError, match=r"B-factors from .* are pLDDT from 0 to 100"):
            mask_low_confidence(replace(chain, b_factors=chain.b_factors * np.float32(scale)), 50)  # type: ignore[operator]
