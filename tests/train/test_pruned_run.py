"""Runs with unbiased pruning: one rank and two, packed, resumed; what cannot be pruned is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4sci.data import score_file
from ds4sci.select.scoring import score_runs
from tests.support import layouts, rank_processes

PRUNING = {"ratio": 0.5, "last": 0.125}


def config_of(folder: Path, task: str = "token_classification", **data: Any) -> Path:
    train = {"steps": 16, "save_every": 1, "keep_last": 99}
    return layouts.configure(task, folder, train=train, data={"pruning": PRUNING} | data).source


def train(folder: Path, ranks: int, config: Path, name: str) -> Path:
    (folder / "ds.json").write_text(json.dumps(layouts.deepspeed(2, 16 // ranks // 2, 2)))
    rows = [{"config": str(config), "deepspeed": str(folder / "ds.json"), "name": name}]
    (folder / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(ranks, layouts.run, [str(folder / "cases.json")], folder, seconds=120)
    return folder / "runs" / name


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("task", ["token_classification", pytest.param("causal_lm", marks=pytest.mark.nightly)])
def test_ranks_prune_alike_and_a_resume_continues_exactly(task: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, task)
    two = train(tmp_path, 2, config, "two")
    assert losses_of(train(tmp_path, 1, config, "one")) == pytest.approx(losses_of(two), rel=1e-5)
    plain = layouts.configure(task, tmp_path, train={"steps": 16}).source
    apart = losses_of(train(tmp_path, 2, plain, "plain"))
    assert any(abs(a / b - 1) > 1e-3 for a, b in zip(losses_of(two), apart, strict=True)), "pruning changes the samples"

    before = losses_of(two)
    for step in range(8, 17):
        shutil.rmtree(two / f"checkpoints/step_{step:06d}")
    (two / "checkpoints/latest").write_text("step_000007\n")
    assert (two / "checkpoints/step_000007/data_state.npz").is_file()
    rank_processes.call(2, resume, [str(two)], tmp_path, seconds=120)
    assert losses_of(two) == before


def resume(run: str) -> None:
    from ds4sci.config.run_file import RunConfig
    from ds4sci.train.run import Session

    folder = Path(run)
    config = RunConfig.load(folder / "config.json", deepspeed=folder / "deepspeed.json")
    Session.join(config, resume=folder).train()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"workers": 2}, "data.pruning: data.workers = 2"),
        ({"phases": [{"length": 48}, {"from_progress": 0.5, "length": 64}]}, "2 phases of data.phases"),
    ],
)
def test_what_cannot_be_pruned(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    task = "masked_lm" if "phases" in data else "token_classification"
    with pytest.raises(AssertionError, match=message):
        train(tmp_path, 1, config_of(tmp_path, task, **data), "run")


def test_recorded_scores_are_those_of_a_pass_of_their_own(tmp_path: Path) -> None:
    """Weights that do not move: on one rank and two, any ZeRO stage, packed or not, loss and EL2N of every chain are
    those of ``ds4sci select score`` within 1e-5; on the same layout they are the same bits."""
    still = {"type": "SGD", "params": {"lr": 0.0}}
    runs = {}
    for name, (ranks, stage, packing) in {
        "one": (1, 0, True), "two": (2, 2, True), "again": (2, 2, True), "apart": (2, 3, False),
    }.items():  # fmt: skip
        data = {"record_scores": True, "packing": packing}
        config = layouts.configure("token_classification", tmp_path, data=data, train={"steps": 4})
        tree = layouts.deepspeed(stage, 8 // ranks, 2, optimizer=still)
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        rows = [{"config": str(config.source), "deepspeed": str(tmp_path / f"{name}.json"), "name": name}]
        (tmp_path / "cases.json").write_text(json.dumps(rows))
        rank_processes.call(ranks, layouts.run, [str(tmp_path / "cases.json")], tmp_path, seconds=120)
        runs[name] = score_file.read(tmp_path / "runs" / name / "scores.npz")
    wanted = score_runs([tmp_path / "runs/one"], tmp_path / "x.npz", wanted=("loss", "el2n"))
    for name, found in runs.items():
        assert found.name.tolist() == wanted.name.tolist()
        for score in ("loss", "loss_mean", "el2n"):
            np.testing.assert_allclose(found.scores[score], wanted.scores[score.split("_")[0]], rtol=1e-5, err_msg=name)
    for score, values in runs["two"].scores.items():
        np.testing.assert_array_equal(values, runs["again"].scores[score])
