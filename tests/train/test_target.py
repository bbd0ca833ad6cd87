"""Stop at the target of a benchmark, on one and two ranks; resume of such a run; a metric that does not exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import RunConfig
from ds4sci.files.atomic_files import fingerprint
from ds4sci.train import checkpoint, listeners, target
from tests.support import rank_processes, toy_benchmark
from tests.support.run_files import digest, metrics
from tests.support.toy_benchmark import EASY, HARD


def scores(run: Path) -> dict[int, float]:
    return {line["step"]: line["score"] for line in metrics(run, "eval")}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_ends_at_the_first_evaluation_that_reaches_the_target(ranks, tmp_path) -> None:
    """The target is the first score below that of step 2, with direction ``lower``."""
    file = toy_benchmark.write(tmp_path, -100.0, direction="lower", name="run")
    whole = rank_processes.run(ranks, ["--config", str(file)], tmp_path)
    assert "target not reached: score ≤ -100" in whole.output
    reference = scores(tmp_path / "runs/run")
    assert list(reference) == [2, 4, 6, 8, 10, 12]
    first = next(step for step in reference if reference[step] < reference[2])
    aim = reference[first]

    file = toy_benchmark.write(tmp_path, aim, direction="lower", name="short")
    done = rank_processes.run(ranks, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/short"
    assert f"target reached: score {aim:.4g} (target ≤ {aim:g}) at step {first} after" in done.output
    assert scores(run) == {step: value for step, value in reference.items() if step <= first}
    assert (run / "checkpoints/latest").read_text() == f"step_{first:06d}\n"
    state = json.loads((run / f"checkpoints/step_{first:06d}/state.json").read_text())
    assert state["reached"].pop("seconds") > 0
    assert state["reached"] == {"step": first, "metric": "score", "value": aim}

    # resumed, it does not train
    before = digest(run / f"checkpoints/step_{first:06d}/model.safetensors")
    resumed = rank_processes.run(ranks, ["--resume", "runs/short"], tmp_path)
    assert "this run has reached its target" in resumed.output
    assert "nothing to train" in resumed.output
    assert checkpoint.checkpoint_steps(run)[-1] == first
    assert digest(run / f"checkpoints/step_{first:06d}/model.safetensors") == before

    # with a target beyond, it trains on
    further = rank_processes.run(ranks, ["--resume", "runs/short", "benchmark.target=-100.0"], tmp_path)
    assert "target not reached: score ≤ -100" in further.output
    assert scores(run) == reference


def test_an_early_checkpoint_without_the_field_resumes(tmp_path) -> None:
    file = toy_benchmark.write(tmp_path, HARD, name="run")
    rank_processes.run(1, ["--config", str(file), "train.steps=4"], tmp_path)
    folder = tmp_path / "runs/run/checkpoints/step_000004"
    state = json.loads((folder / "state.json").read_text())
    del state["reached"]
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = fingerprint(folder / "state.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = rank_processes.run(1, ["--resume", "runs/run", "train.steps=6"], tmp_path)
    assert "Done: 6 steps" in done.output


def test_a_metric_that_does_not_exist_is_an_error_with_the_metrics(tmp_path) -> None:
    file = toy_benchmark.write(tmp_path, metric="scroe", name="run")
    done = rank_processes.run(2, ["--config", str(file)], tmp_path, code=None)
    assert max(done.codes) == 2
    assert "benchmark.metric = 'scroe'" in done.output
    assert "choose one of: score" in done.output
    assert len(metrics(tmp_path / "runs/run", "eval")) == 0


class Recorder:
    def __init__(self) -> None:
        self.ends: list[tuple[str, dict[str, Any]]] = []

    def begin(self, stage: str, values: Mapping[str, Any]) -> None: ...

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        self.ends.append((stage, dict(values)))

    def message(self, key: str, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def test_the_result_and_the_stage_know_the_target(tmp_path, monkeypatch) -> None:
    from ds4sci.train.run import train

    recorder = Recorder()
    monkeypatch.setattr(listeners, "of_rank", lambda *_: [recorder])
    overrides = [f"train.output={str(tmp_path)!r}"]
    reached = train(RunConfig.load(toy_benchmark.write(tmp_path, EASY, name="easy"), overrides))
    assert reached.finished
    assert reached.reached is not None
    assert (reached.step, reached.reached["step"]) == (2, 2)
    value = reached.summary["score"]
    assert recorder.ends[-1] == (
        "run", {"finished": True, "reached": True, "metric": "score", "step": 2, "value": value}
    )  # fmt: skip
    missed = train(RunConfig.load(toy_benchmark.write(tmp_path, HARD, name="hard", steps=2), overrides))
    assert missed.finished
    assert missed.reached is None
    assert recorder.ends[-1][1]["reached"] is False


@pytest.mark.parametrize(("direction", "value", "met"), [
    ("higher", 0.5, True), ("higher", 0.49, False), ("higher", float("nan"), False),
    ("lower", 0.5, True), ("lower", 0.51, False), ("lower", float("nan"), False),
])  # fmt: skip
def test_direction_of_the_target(direction, value, met) -> None:
    benchmark = BenchmarkConfig(name="x", title="x", metric="m", target=0.5, direction=direction)
    assert benchmark.is_reached(value) is met
    reached = {"step": 1, "metric": "m", "value": value, "seconds": 60.0}
    assert benchmark.condition in target.describe(benchmark, reached)
