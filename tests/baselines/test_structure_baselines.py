"""Structure baselines on a few real chains; the documented values, on all chains, in a nightly test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci import metrics
from ds4sci.baselines import BASELINES, MUST_BEAT, measure_baselines
from ds4sci.baselines.distances import DistanceTable, _medians, embed_distances
from ds4sci.baselines.secondary_structure import predict_secondary, train_secondary_predictor
from ds4sci.baselines.structure_baselines import ideal_helix
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.types import Record

DATA = Path(__file__).parents[2] / "examples" / "fold" / "data"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return ChainSet.open(DATA / "chains_valid.npz")[:90]


@pytest.fixture(scope="module")
def sets(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """84 training chains and 6 validation chains."""
    folder = tmp_path_factory.mktemp("sets")
    ChainSet.write(folder / "train.npz", records[:84])
    ChainSet.write(folder / "valid.npz", records[84:])
    return folder / "train.npz", folder / "valid.npz"


def test_every_baseline_is_measured_and_cached(sets: tuple[Path, Path], tmp_path: Path) -> None:
    random_state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    result = measure_baselines(*sets, cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(result["baselines"]) == list(BASELINES)
    assert not result["skipped"]
    assert seen[-1] == (30, 30)
    means = {name: entry["mean"] for name, entry in result["baselines"].items()}
    assert means["helix"]["right_handed"] == means["helix"]["bond_ok"] == 1
    # measured on these chains: a lower value is a worse baseline, which is easier to beat
    for name, lddt, tm in (
        ("helix", 0.298, 0.197),
        ("random_native", 0.308, 0.184),
        ("distances", 0.312, 0.212),
        ("distances_predicted_secondary", 0.365, 0.223),
        ("distances_true_secondary", 0.412, 0.246),
    ):
        assert means[name]["lddt_ca"] >= lddt - 0.01, name
        assert means[name]["tm_score"] >= tm - 0.01, name
    # Better-informed baselines score higher, even when fitted on 84 chains.
    assert means["distances_true_secondary"]["lddt_ca"] > means["distances"]["lddt_ca"] + 0.03
    assert means["distances_true_secondary"]["right_handed"] > 0.8
    for name, entry in result["baselines"].items():
        assert entry["must_beat"] == (name in MUST_BEAT)
        assert [row["id"] for row in entry["per_chain"]] == [record.id for record in ChainSet.open(sets[1])]
    (cached,) = tmp_path.iterdir()
    assert json.loads(cached.read_text()) == json.loads(json.dumps(result))
    seen.clear()
    assert measure_baselines(*sets, cache=tmp_path, progress=lambda *_: seen.append((0, 0))) == json.loads(
        cached.read_text()
    )
    assert not seen  # read from the cache
    cached.write_text("{truncat")
    again = measure_baselines(*sets, cache=tmp_path)
    assert again["baselines"] == result["baselines"]  # the measurement is deterministic


def test_baselines_whose_inputs_are_missing_are_skipped(records: list[Record], tmp_path: Path) -> None:
    bare = [replace(record, dssp=None, profile=None) for record in records]
    ChainSet.write(tmp_path / "train.npz", records[:40])
    ChainSet.write(tmp_path / "bare.npz", bare[40:60])
    ChainSet.write(tmp_path / "valid.npz", bare[84:86])
    first = measure_baselines(tmp_path / "train.npz", tmp_path / "valid.npz")
    assert set(first["skipped"]) == set(MUST_BEAT)
    assert "profile" in first["skipped"]["distances_predicted_secondary"]
    assert "validation set" in first["skipped"]["distances_true_secondary"]
    second = measure_baselines(tmp_path / "bare.npz", tmp_path / "valid.npz")
    assert "training set" in second["skipped"]["distances_true_secondary"]
    assert set(second["baselines"]) == {"helix", "random_native", "distances"}


def test_chains_longer_than_all_training_chains_have_no_native_fold(records: list[Record], tmp_path: Path) -> None:
    by_length = sorted(records, key=lambda record: len(record.sequence))
    ChainSet.write(tmp_path / "short.npz", by_length[:20])
    ChainSet.write(tmp_path / "long.npz", by_length[-1:])
    result = measure_baselines(tmp_path / "short.npz", tmp_path / "long.npz")
    assert result["baselines"]["random_native"]["per_chain"] == []
    assert result["baselines"]["distances"]["mean"]["lddt_ca"] > 0


def test_embedding_recovers_a_chain_from_its_own_distances(records: list[Record]) -> None:
    for record in records[:4]:
        true = record.atom_positions[:, 1].astype(float)
        distance = np.linalg.norm(true[:, None] - true[None], axis=-1)
        weight = 1 / (1 + distance**2)
        np.fill_diagonal(weight, 0)
        assert metrics.rmsd(embed_distances(distance, weight), true) < 0.01  # also the correct mirror image


def test_embedding_of_very_short_chains() -> None:
    for n in (1, 2, 3):
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * 3.8
        weight = np.ones((n, n)) - np.eye(n)
        chain = embed_distances(distance, weight, np.zeros(n, dtype=int))
        np.testing.assert_allclose(np.linalg.norm(chain[:, None] - chain[None], axis=-1), distance, atol=1e-3)


def test_medians_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 40, 500), rng.uniform(0, 60, 500).round(2)
    median, spread, count = _medians(keys, values, 45)
    for key in range(45):
        own = values[keys == key]
        assert count[key] == len(own)
        if len(own):
            assert median[key] == pytest.approx(np.median(own))
            assert spread[key] == pytest.approx(np.median(np.abs(own - np.median(own))), abs=0.011)
        else:
            assert np.isnan(median[key])


def test_the_table_reproduces_a_helix_with_high_weights(records: list[Record]) -> None:
    traces = [ideal_helix(n) + np.random.default_rng(n).normal(0, 0.01, (n, 3)) for n in range(40, 80)]
    present = [np.ones(len(trace), dtype=bool) for trace in traces]
    states = [np.zeros(len(trace), dtype=int) for trace in traces]
    table = DistanceTable.fit(traces, present, states)
    distance, weight = table.expect(60, states[20])
    exact = ideal_helix(60)
    np.testing.assert_allclose(distance, np.linalg.norm(exact[:, None] - exact[None], axis=-1), atol=0.05)
    assert weight[0, 4] > 10
    with pytest.raises(ValueError, match="with secondary structure"):
        table.expect(60)
    with pytest.raises(ValueError, match="without secondary structure"):
        DistanceTable.fit(traces, present).expect(60, states[20])


def test_the_secondary_structure_predictor_learns_and_is_deterministic() -> None:
    """The predictor finds a profile column that equals the class; unknown classes are ignored."""
    rng = np.random.default_rng(0)
    classes = [np.repeat(rng.integers(0, 3, 8), 8) for _ in range(64)]
    profiles = [rng.random((64, 20)).astype(np.float32) / 20 for _ in classes]
    for profile, own in zip(profiles, classes, strict=True):
        profile[np.arange(64), own] += 0.5
    partly_known = [np.where(np.arange(64) < 50, own, -1) for own in classes]
    network = train_secondary_predictor(profiles, partly_known)
    predicted = predict_secondary(network, profiles[:5])
    assert np.mean([(a == b).mean() for a, b in zip(predicted, classes, strict=False)]) > 0.9
    again = predict_secondary(train_secondary_predictor(profiles, partly_known), profiles[:5])
    assert all((a == b).all() for a, b in zip(predicted, again, strict=True))
    assert predict_secondary(network, []) == []


@pytest.mark.nightly
def test_all_baselines_reach_the_documented_values() -> None:
    """The means in the docstring of ``ds4sci.baselines`` are lower bounds, up to rounding."""
    result = measure_baselines(DATA / "chains_train.npz", DATA / "chains_valid.npz")
    for name, lddt, tm in (
        ("helix", 0.318, 0.22),
        ("random_native", 0.308, 0.19),
        ("distances", 0.309, 0.18),
        ("distances_predicted_secondary", 0.408, 0.24),
        ("distances_true_secondary", 0.428, 0.26),
    ):
        mean = result["baselines"][name]["mean"]
        assert mean["lddt_ca"] >= lddt - 5e-4, name
        assert mean["tm_score"] >= tm - 5e-3, name
