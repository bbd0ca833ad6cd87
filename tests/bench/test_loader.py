"""The benchmark runs and says what it measured; nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ds4sci.bench import loader
from ds4sci.data.structures.parsers import mmcif

DATA = Path(__file__).parents[1] / "fixtures" / "mmcif"


def test_quick_run_writes_every_figure(tmp_path: Path) -> None:
    files = [DATA / "1ubq.cif.gz", DATA / "1kd8.cif.gz"]
    valid = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"
    result = loader.run(tmp_path / "deep" / "data.json", quick=True, mmcif_files=files, chains=valid, crops=(32,))
    assert json.loads((tmp_path / "deep" / "data.json").read_text()) == result
    assert set(result["parsers"]["entries_per_second"]) == {"gemmi", "biopython"}
    assert [row["workers"] for row in result["loader"]] == [0, 2]
    assert all(row["samples_per_second"]["median"] > 0 for row in result["loader"])
    assert {"cpu", "commit", "versions"} <= set(result["machine"])


def test_both_parsers_do_the_work() -> None:
    """Biopython's share of the benchmark sees at least the atoms that a record holds."""
    ours = mmcif.read(DATA / "1ubq.cif.gz", "A").atom_positions
    theirs = {tuple(position) for position in np.concatenate(loader.biopython_atoms(DATA / "1ubq.cif.gz")).tolist()}
    assert {tuple(position) for position in ours[ours.any(-1)].tolist()} <= theirs
