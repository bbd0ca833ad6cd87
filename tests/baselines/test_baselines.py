"""Baselines on a handful of real chains; the full figures in a slow test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci import metrics
from ds4sci.baselines import BASELINES, MUST_BEAT, measure_baselines
from ds4sci.baselines.distances import DistanceTable, _medians, embed
from ds4sci.baselines.measure import ideal_helix
from ds4sci.baselines.secondary import learn_secondary, predict_secondary
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.types import Record

DATA = Path(__file__).parents[2] / "examples" / "fold" / "data"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return ChainSet.open(DATA / "chains_valid.npz")[:90]


@pytest.fixture(scope="module")
def sets(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """84 chains to learn from and 6 to be asked."""
    folder = tmp_path_factory.mktemp("sets")
    ChainSet.write(folder / "train.npz", records[:84])
    ChainSet.write(folder / "valid.npz", records[84:])
    return folder / "train.npz", folder / "valid.npz"


def test_every_baseline_is_measured_and_kept(sets: tuple[Path, Path], tmp_path: Path) -> None:
    random_state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    result = measure_baselines(*sets, cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(result["baselines"]) == list(BASELINES)
    assert not result["left_out"]
    assert seen[-1] == (30, 30)
    means = {name: entry["mean"] for name, entry in result["baselines"].items()}
    assert means["helix"]["right_handed"] == means["helix"]["bond_ok"] == 1
    assert 0.25 < means["helix"]["lddt_ca"] < 0.4
    # What a baseline knows shows in its score, even learnt from 84 chains.
    assert means["distances_true_secondary"]["lddt_ca"] > means["distances"]["lddt_ca"] + 0.03
    assert means["distances_true_secondary"]["right_handed"] > 0.8
    for name, entry in result["baselines"].items():
        assert entry["must_beat"] == (name in MUST_BEAT)
        assert [row["id"] for row in entry["per_chain"]] == [record.id for record in ChainSet.open(sets[1])]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == json.loads(json.dumps(result))
    seen.clear()
    assert measure_baselines(*sets, cache=tmp_path, progress=lambda *_: seen.append((0, 0))) == json.loads(
        kept.read_text()
    )
    assert not seen  # read, not measured again
    kept.write_text("{cut sho")
    again = measure_baselines(*sets, cache=tmp_path)
    assert again["baselines"] == result["baselines"]  # and the same numbers at every run


def test_what_a_set_lacks_leaves_its_baselines_out(records: list[Record], tmp_path: Path) -> None:
    bare = [replace(record, dssp=None, profile=None) for record in records]
    ChainSet.write(tmp_path / "known.npz", records[:40])
    ChainSet.write(tmp_path / "bare.npz", bare[40:60])
    ChainSet.write(tmp_path / "asked.npz", bare[84:86])
    first = measure_baselines(tmp_path / "known.npz", tmp_path / "asked.npz")
    assert set(first["left_out"]) == set(MUST_BEAT)
    assert "profile" in first["left_out"]["distances_predicted_secondary"]
    assert "validation set" in first["left_out"]["distances_true_secondary"]
    second = measure_baselines(tmp_path / "bare.npz", tmp_path / "asked.npz")
    assert "training set" in second["left_out"]["distances_true_secondary"]
    assert set(second["baselines"]) == {"helix", "random_native", "distances"}


def test_chains_longer_than_any_known_have_no_native(records: list[Record], tmp_path: Path) -> None:
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
        assert metrics.rmsd(embed(distance, weight), true) < 0.01  # the right mirror image among the two, too


def test_embedding_survives_tiny_chains() -> None:
    for n in (1, 2, 3):
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * 3.8
        weight = np.ones((n, n)) - np.eye(n)
        chain = embed(distance, weight, np.zeros(n, dtype=int))
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


def test_table_knows_a_helix_and_its_exactness(records: list[Record]) -> None:
    traces = [ideal_helix(n) + np.random.default_rng(n).normal(0, 0.01, (n, 3)) for n in range(40, 80)]
    present = [np.ones(len(trace), dtype=bool) for trace in traces]
    states = [np.zeros(len(trace), dtype=int) for trace in traces]
    table = DistanceTable.learn(traces, present, states)
    distance, weight = table.expect(60, states[20])
    exact = ideal_helix(60)
    np.testing.assert_allclose(distance, np.linalg.norm(exact[:, None] - exact[None], axis=-1), atol=0.05)
    assert weight[0, 4] > 10
    with pytest.raises(ValueError, match="needs secondary structure"):
        table.expect(60)
    with pytest.raises(ValueError, match="knows no secondary structure"):
        DistanceTable.learn(traces, present).expect(60, states[20])


def test_secondary_structure_is_learnt_and_repeats() -> None:
    """A profile column that gives the class away is found; unknown classes are not learnt from."""
    rng = np.random.default_rng(0)
    classes = [np.repeat(rng.integers(0, 3, 8), 8) for _ in range(64)]
    profiles = [rng.random((64, 20)).astype(np.float32) / 20 for _ in classes]
    for profile, own in zip(profiles, classes, strict=True):
        profile[np.arange(64), own] += 0.5
    partly = [np.where(np.arange(64) < 50, own, -1) for own in classes]
    network = learn_secondary(profiles, partly)
    guess = predict_secondary(network, profiles[:5])
    assert np.mean([(a == b).mean() for a, b in zip(guess, classes, strict=False)]) > 0.9
    again = predict_secondary(learn_secondary(profiles, partly), profiles[:5])
    assert all((a == b).all() for a, b in zip(guess, again, strict=True))
    assert predict_secondary(network, []) == []


@pytest.mark.slow
def test_full_figures_reach_the_reference() -> None:
    """The measured means that the docstring of ``ds4sci.baselines`` states, and the reference figures below them."""
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
