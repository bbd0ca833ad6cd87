"""Runs with unbiased pruning: one rank and two, packed, resumed; what cannot be pruned is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.data import score_file
from ds4sci.losses.fold import sample_losses as fold_losses
from ds4sci.select.scoring import score_runs
from ds4sci.tasks.array_task import ArrayTask
from ds4sci.tasks.build import build_task
from ds4sci.tasks.fold import FoldTask
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


NIGHTLY = [pytest.param(task, marks=pytest.mark.nightly) for task in ("causal_lm", "fold")]


@pytest.mark.parametrize("task", ["token_classification", "volume_regression", *NIGHTLY])
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
        ({"order": "ready"}, 'data.pruning: data.order = "ready"'),
    ],
)
def test_what_cannot_be_pruned(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    task = {"phases": "masked_lm", "order": "volume_regression"}.get(next(iter(data)), "token_classification")
    with pytest.raises(AssertionError, match=message):
        train(tmp_path, 1, config_of(tmp_path, task, **data), "run")


@pytest.mark.nightly
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


@pytest.mark.parametrize("task", ["volume_regression", pytest.param("fold", marks=pytest.mark.nightly)])
def test_arrays_and_chains_are_recorded(task: str, tmp_path: Path) -> None:
    """Weights that do not move, no crop or symmetry: what a run records is what a pass of its own finds."""
    still = {"type": "SGD", "params": {"lr": 0.0}}
    data: dict[str, Any] = {"record_scores": True}
    data |= {"shifts": False, "symmetries": False} if task == "volume_regression" else {}
    runs = {}
    for name, (ranks, stage) in {"one": (1, 0), "two": (2, 2)}.items():
        config = layouts.configure(task, tmp_path, data=data, train={"steps": 4})
        (tmp_path / f"{name}.json").write_text(json.dumps(layouts.deepspeed(stage, 8 // ranks, 1, optimizer=still)))
        rows = [{"config": str(config.source), "deepspeed": str(tmp_path / f"{name}.json"), "name": name}]
        (tmp_path / "cases.json").write_text(json.dumps(rows))
        rank_processes.call(ranks, layouts.run, [str(tmp_path / "cases.json")], tmp_path, seconds=120)
        runs[name] = score_file.read(tmp_path / "runs" / name / "scores.npz")
    np.testing.assert_allclose(runs["one"].scores["loss"], runs["two"].scores["loss"], rtol=1e-5)
    assert set(runs["one"].scores) == {"loss", "loss_mean"}, "no classes, so nothing is learned or forgotten"
    if task == "fold":
        logged = losses_of(tmp_path / "runs/one")
        seen = runs["one"].scores["loss_mean"]
        assert np.nanmin(seen) <= min(logged) <= max(logged) <= np.nanmax(seen)
        return
    wanted = score_runs([tmp_path / "runs/one"], tmp_path / "x.npz", wanted=("loss",))
    found = runs["two"].scores["loss"]
    is_seen = np.isfinite(found)
    assert is_seen.sum() >= 30, "four steps of eight"
    np.testing.assert_allclose(found[is_seen], wanted.scores["loss"][is_seen], rtol=1e-5)


@pytest.mark.parametrize("task", ["volume_regression", pytest.param("fold", marks=pytest.mark.nightly)])
def test_weights_of_arrays_and_chains(task: str, tmp_path: Path) -> None:
    """Samples of weight 0 give no gradient: only those of the others are in the loss."""
    config = layouts.configure(task, tmp_path, train={"steps": 4})
    names = build_task(config).sample_names()
    weights = np.random.default_rng(1).integers(0, 2, len(names))
    score_file.write_scores(tmp_path / "weights.npz", names, {"weight": weights.astype(float)}, {})
    changed = layouts.configure(
        task, tmp_path, train={"steps": 4}, data={"weights": {"scores": str(tmp_path / "weights.npz")}}
    )
    plain, weighed = build_task(config), build_task(changed)
    position = {"start_step": 0, "rank": 0, "world_size": 1, "micro_batch_size": 6, "accumulation_steps": 1}
    (own, other) = (next(iter(made.batches(**position))) for made in (weighed, plain))
    assert own.ids == other.ids
    expected = weights[own.sample.numpy()] / weights.mean()
    assert own.factor.tolist() == pytest.approx(expected.tolist())
    assert 0 < np.count_nonzero(expected) < 6, "a batch with both kinds"
    output = weighed.model(own)
    assert isinstance(plain, ArrayTask | FoldTask)
    if isinstance(plain, ArrayTask):
        losses = plain.sample_losses(output, other)[0]
    else:
        losses = fold_losses(output, other, plain.config.loss)[0]
    wanted = float((losses * torch.from_numpy(expected)).mean())
    assert float(weighed.loss(output, own)[0]) == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(float(plain.loss(output, other)[0]), rel=1e-3)
