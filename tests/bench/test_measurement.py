"""The benchmarks run on small input, and what they write is what README's tables are made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ds4sci.bench import measurement as bench
from ds4sci.bench import tables
from ds4sci.data.structures.features import FeatureConfig, featurize

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/fold/tiny_cpu.toml")
TINY = ["model.evoformer.blocks=1", "model.structure.iterations=1"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run file names its data from the repository's root."""
    monkeypatch.chdir(ROOT)


def check(measurement: bench.Measurement, folder: Path) -> list[list[object]]:
    """Save, read back, show; the rows."""
    saved = json.loads(measurement.save(folder).read_text(encoding="utf-8"))
    assert saved["machine"]["cores"] >= 1
    assert saved["machine"]["commit"]
    assert all(len(row) == len(saved["columns"]) for row in saved["rows"])
    assert f"**{saved['title']}**" in tables.section(saved)
    return saved["rows"]


def test_loader_against_step(tmp_path: Path) -> None:
    loader, step = check(bench.loading(CONFIG, TINY, batches=2, rounds=2), tmp_path)
    assert loader[0] == "loader"
    assert step[3] == 1
    assert float(str(loader[1])) > 0
    assert float(str(loader[3])) == pytest.approx(float(str(loader[1])) / float(str(step[1])))


def test_step_by_crop(tmp_path: Path) -> None:
    rows = check(bench.steps(CONFIG, TINY, [8, 48], repeats=2), tmp_path)
    assert [row[0] for row in rows] == [8, 48]
    assert all(float(str(row[1])) > 0 for row in rows)
    assert float(str(rows[1][3])) > float(str(rows[0][3])) > 0, "a longer crop needs more memory"


def test_step_against_another_kernel(tmp_path: Path) -> None:
    other = ["kernels.evoformer_attention=reference"]
    measured = bench.steps_against(CONFIG, TINY, other, 16)
    rows = check(measured, tmp_path)
    assert [row[0] for row in rows] == ["as configured", *other]
    assert rows[1][4] == 1
    (losses,) = (note for note in measured.notes if note.startswith("losses"))
    assert float(losses.rpartition("at most ")[2].split()[0]) < 1e-3, "the same model by another kernel"
    with pytest.raises(ValueError, match="no implementation 'none'"):
        bench.steps_against(CONFIG, TINY, ["kernels.evoformer_attention=none"], 16)


def test_peak_is_that_of_this_program() -> None:
    before = bench.peak_bytes()
    held = np.ones(60_000_000 // 8)
    after = bench.peak_bytes()
    assert before is not None
    assert after is not None
    assert after >= before
    assert after >= held.nbytes


def test_parsing(tmp_path: Path) -> None:
    rows = check(bench.parsing(ROOT / "tests/fixtures/mmcif", rounds=1), tmp_path)
    assert {row[0] for row in rows} == {"gemmi", "biopython"}
    with pytest.raises(ValueError, match=r"no \*\.cif"):
        bench.parsing(tmp_path)


@pytest.mark.parametrize("msa_input", ["msa", "profile", "sequence"])
def test_made_up_chain_serves_every_input(msa_input: str) -> None:
    rng = np.random.default_rng(0)
    settings = FeatureConfig(msa_input=msa_input, max_clusters=6, max_extra=10)  # type: ignore[arg-type]
    features = featurize(bench.chain(23, 16, rng), settings, rng)
    assert features.msa_feat.shape == (6 if msa_input == "msa" else 1, 23, 49)
    assert features.atom_mask[:, :3].all()
    ca = features.atom_positions[:, 1]
    np.testing.assert_allclose(np.linalg.norm(np.diff(ca, axis=0), axis=1), bench.CA_STEP, rtol=1e-5)
