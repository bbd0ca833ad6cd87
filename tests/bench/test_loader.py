"""Data-loading benchmarks run on small inputs. No assertion depends on the speed of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.bench import loader
from tests.support.measurements import saved_rows

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "fixtures" / "mmcif"


def test_quick_run_writes_all_figures(tmp_path: Path) -> None:
    files = [DATA / "1ubq.cif.gz", DATA / "1kd8.cif.gz"]
    valid = ROOT / "examples" / "fold" / "data" / "chains_valid.npz"
    result = loader.run(tmp_path / "deep" / "data.json", quick=True, mmcif_files=files, chains=valid, crops=(32,))
    assert json.loads((tmp_path / "deep" / "data.json").read_text()) == result
    assert set(result["parsers"]["entries_per_second"]) == {"gemmi", "biopython"}
    assert [row["workers"] for row in result["loader"]] == [0, 2]
    assert all(row["samples_per_second"]["median"] > 0 for row in result["loader"])
    assert {"cpu", "commit", "versions"} <= set(result["machine"])


def test_loader_against_training_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tiny = ["model.evoformer.blocks=1", "model.structure.iterations=1"]
    measurement = loader.measure(str(ROOT / "configs/fold/tiny_cpu.toml"), tiny, n_batches=2, rounds=2)
    loading, step = saved_rows(measurement, tmp_path)
    assert loading[0] == "loader"
    assert step[3] == 1
    assert float(str(loading[1])) > 0
    assert float(str(loading[3])) == pytest.approx(float(str(loading[1])) / float(str(step[1])))
