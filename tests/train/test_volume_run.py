"""Regression from volumes on DeepSpeed: a run on two ranks in bf16, its evaluation and its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ds4sci import __version__
from ds4sci.cli.main import app
from ds4sci.config import run_version
from ds4sci.report.run_report import write_report
from tests.support import layouts, rank_processes
from tests.support.run_files import losses

ADAM = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}


def test_two_ranks_train_in_16_bits_and_the_report_shows_ridge_beside(tmp_path: Path) -> None:
    layouts._volumes(tmp_path / "volumes")
    settings = layouts.deepspeed(3, 4, 1, bf16={"enabled": True}, optimizer=ADAM)
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    sections = {
        run_version.KEY: __version__, "deepspeed": "ds.json",
        "task": {"name": "volume_regression"}, "model": layouts.SMALL_CNN,
        "train": {"steps": 40, "evaluate_every": 20, "log_every": 1, "name": "run", "ema_decay": 0.5},
        "data": {"path": str(tmp_path / "volumes"), "targets": ["first", "second", "noise"]},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(sections))
    rank_processes.run(2, ["--config", str(tmp_path / "run.json")], tmp_path)
    run = tmp_path / "runs/run"
    found = list(losses(run).values())
    assert np.mean(found[-8:]) < 0.8 * np.mean(found[:8]), found
    done = CliRunner().invoke(app, ["eval", "--run", str(run), "--json", str(tmp_path / "scores.json")])
    assert done.exit_code == 0, done.output
    assert "ridge on P(k)" in done.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["mean"]["mae"] == pytest.approx(
        np.mean([scores["mean"][f"mae_{x}"] for x in ("first", "second", "noise")])
    )
    assert (tmp_path / "scores.png").stat().st_size > 5_000
    page = write_report(run).read_text()
    assert "<h2>Model and baselines</h2>" in page
    assert "ridge on P(k) and moments" in page
    for figure in ("Central slice of the channels", "Predicted against true first, second, noise of 3"):
        assert f'<img alt="{figure}' in page
    (run / "evaluations/slices.svg").unlink()
    assert "slices.svg is missing" in write_report(run).read_text()
