"""Study of data selection in whole trainings: the run files that it makes, and its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ds4sci.bench import data_selection_runs
from ds4sci.bench.data_selection_runs import METHODS, Study, Training
from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file

FILE = "configs/benchmarks/protein_lm.toml"
TINY = (
    "model.config.hidden_size=16", "model.config.intermediate_size=16", "model.config.num_hidden_layers=1",
    "train.steps=8", "data.phases=[{length = 128, row_length = 128}]", "data.evaluate_every_token=false",
)  # fmt: skip


def study(folder: Path, *overrides: str) -> Study:
    return Study(FILE, overrides, "el2n", 0.2, (8, 32), 1, 2, 3, folder)


def loaded(one: Study, training: Training) -> RunConfig:
    base = RunConfig.load(one.file, one.overrides)
    given = data_selection_runs.arguments(one, base, training)
    assert given[::2][:2] == ["--config", "--deepspeed_config"]
    return RunConfig.load(given[1], given[4:], deepspeed=given[3])


def test_settings_follow_batch_and_method(tmp_path: Path) -> None:
    base = RunConfig.load(FILE)
    wide = loaded(study(tmp_path), Training(32, "lowest", 3))
    assert wide.deepspeed_config()["train_batch_size"] == 32
    assert wide.deepspeed_config()["optimizer"]["params"]["lr"] == pytest.approx(2 * 1e-3), "square root of the batch"
    assert wide.deepspeed_config()["scheduler"]["params"]["total_num_steps"] == 150
    assert (wide.train.steps, wide.train.evaluate_every, wide.seed) == (150, 150, 3)
    assert wide.train.ema_decay == pytest.approx(0.98**4), "averages over as many samples"
    assert wide.benchmark is not None
    assert base.benchmark is not None
    assert wide.benchmark.target < 0 < base.benchmark.target, "no run ends at the target"
    selection = wide.settings.data.selection  # type: ignore[attr-defined]
    assert (selection.keep, selection.fraction, selection.score) == ("lowest", 0.8, "el2n")
    same = loaded(study(tmp_path), Training(8, "full", 0))
    assert same.deepspeed_config() == base.deepspeed_config()
    assert same.settings.data.selection is None  # type: ignore[attr-defined]
    scoring = loaded(study(tmp_path), Training(8, "full", 0, end=120))
    assert scoring.train.steps == 120
    assert scoring.deepspeed_config() == base.deepspeed_config(), "its schedule is that of the whole run"
    assert loaded(study(tmp_path), Training(8, "random", 1)).settings.data.selection.seed == 1  # type: ignore[attr-defined]


@pytest.mark.nightly
def test_the_smallest_study(tmp_path: Path) -> None:
    out = tmp_path / "small.json"
    data_selection_runs.command(
        out, FILE, list(TINY), score="el2n", batches="8,32", seeds=1, part=0.25, samples=2, iterations=3
    )
    saved = json.loads(out.read_text())
    assert [(one["batch"], one["method"]) for one in saved["runs"]] == [(b, m) for b in (8, 32) for m in METHODS]
    assert [one["steps"] for one in saved["runs"]] == [8] * 3 + [2] * 3
    assert all(np.isfinite([one["quality"], one["lambda_train"], one["lambda_valid"]]).all() for one in saved["runs"])
    scores = score_file.read(tmp_path / "small.runs" / "el2n.npz")
    assert len(scores.sample) > 1000
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert len(saved["rows"]) == 6
