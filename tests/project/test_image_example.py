"""The image example at its smallest: two steps of each training on tiny blocks, and a small relief."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ds4sci.data.array_shards import write_shard
from ds4sci.data.images.recipe import Recipe

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "image_vit" / "run.py"


@pytest.mark.nightly
def test_the_example_runs_at_its_smallest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "brain").mkdir()
    for split, count in (("train", 16), ("valid", 2)):
        inputs = rng.normal(size=(count, 1, 4, 4, 4)).astype(np.float32)
        write_shard(tmp_path / "brain", split, 0, inputs, (inputs[:, 0] > 0).astype(np.uint8) + (inputs[:, 0] > 1))
    Recipe((4, 4, 4), 1, (2.0, 2.0, 2.0), "none").save(tmp_path / "brain", classes=["other", "grey", "white"])
    hill = np.exp(-((np.mgrid[:128, :192] - 60) ** 2).sum(0) / 200) * (1000 + 300 * rng.normal(size=(128, 192)))
    np.savez(tmp_path / "relief.npz", image=hill.astype(np.int16))
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), "--steps", "2", "--ranks", "1"]
    command += ["--brain", str(tmp_path / "brain"), "--relief", str(tmp_path / "relief.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["relief"]["fewer"] > 4
    assert set(result["brain"]) == {"new", "pretrained", "thresholds of intensity", "most frequent class"}
    assert all(0 <= one["miou"] <= 1 for one in result["brain"].values())
    assert (tmp_path / "out/relief.png").stat().st_size > 10_000
