"""Benchmark of the structure model's training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds4sci.bench import fold_step
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.synthetic import CA_DISTANCE, synthetic_chain
from tests.support.measurements import saved_rows

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/fold/tiny_cpu.toml")
TINY = ["model.evoformer.blocks=1", "model.structure.iterations=1"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths in the run file are relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.mark.nightly
def test_step_by_crop(tmp_path: Path) -> None:
    rows = saved_rows(fold_step.measure(CONFIG, TINY, [8, 48], repeats=2), tmp_path)
    assert [row[0] for row in rows] == [8, 48]
    assert all(float(str(row[1])) > 0 for row in rows)
    assert float(str(rows[1][3])) > float(str(rows[0][3])) > 0, "a longer crop needs more memory"


@pytest.mark.nightly
def test_step_against_another_kernel(tmp_path: Path) -> None:
    other = ["kernels.evoformer_attention=reference"]
    measured = fold_step.compare(CONFIG, TINY, other, 16)
    rows = saved_rows(measured, tmp_path)
    assert [row[0] for row in rows] == ["as configured", *other]
    assert rows[1][4] == 1
    (losses,) = (note for note in measured.notes if note.startswith("losses"))
    assert float(losses.rpartition("relative difference ")[2]) < 1e-3, "the same model with another kernel"
    with pytest.raises(ValueError, match="no implementation 'none'"):
        fold_step.compare(CONFIG, TINY, ["kernels.evoformer_attention=none"], 16)


@pytest.mark.parametrize("msa_input", ["msa", "profile", "sequence"])
def test_synthetic_chain_serves_every_input(msa_input: str) -> None:
    rng = np.random.default_rng(0)
    settings = FeatureConfig(msa_input=msa_input, max_clusters=6, max_extra=10)  # type: ignore[arg-type]
    features = featurize(synthetic_chain(23, 16, rng), settings, rng)
    assert features.msa_feat.shape == (6 if msa_input == "msa" else 1, 23, 49)
    assert features.atom_mask[:, :3].all()
    ca = features.atom_positions[:, 1]
    np.testing.assert_allclose(np.linalg.norm(np.diff(ca, axis=0), axis=1), CA_DISTANCE, rtol=1e-5)
