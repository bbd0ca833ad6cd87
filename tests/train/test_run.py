"""A complete run: the files in its folder, its messages, and loading it without DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds4sci.train import checkpoint
from tests.support import rank_processes
from tests.support.run_files import digest, metrics


def test_files_and_messages_of_a_run(tmp_path, run_file) -> None:
    file = run_file(keep_last=1, save_every=3, ds={"zero_optimization": {"stage": 1}})
    other = tmp_path / "mine.json"
    other.write_text(
        '{ // mine\n "train_batch_size": 4,\r\n "zero_optimization": {"stage": 1}, '
        '"zero_allow_untested_optimizer": true, "optimizer": {"type": "SGD", "params": {"lr": 0.05}} }'
    )
    ended = rank_processes.run(2, ["--config", str(file), "--deepspeed_config", str(other), "--local_rank=0"], tmp_path)
    run = tmp_path / "runs/run"
    assert (run / "deepspeed.json").read_bytes() == other.read_bytes()

    train, evaluated = metrics(run, "train"), metrics(run, "eval")
    assert [m["step"] for m in train] == [3, 6, 9, 12]
    assert [m["step"] for m in evaluated] == [4, 8, 12]
    for line in train:
        assert set(line["loss_terms"]) == {"square", "mean"}
        assert line["progress"] == line["step"] / 12
        assert line["loss"] == line["loss_terms"]["square"] > 0
        assert line["lr"] == 0.05
        assert line["grad_norm"] > 0
    with (run / "metrics.jsonl").open() as lines:
        first = json.loads(next(line for line in lines if '"train"' in line))
    assert all(first[name] > 0 for name in ("seconds", "cpu_seconds", "samples_per_second", "memory_mb"))

    best = max(evaluated, key=lambda m: m["score"])["step"]
    assert (run / "checkpoints/best").read_text() == f"step_{best:06d}\n"
    assert (run / "checkpoints/latest").read_text() == "step_000012\n"
    assert checkpoint.checkpoint_steps(run) == sorted({best, 12})
    rows = [json.loads(line) for line in (run / "evaluations/step_000012.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [f"v{i}" for i in range(8)]
    assert sum(r["score"] for r in rows) / 8 == pytest.approx(evaluated[-1]["score"], rel=1e-12)
    machine = json.loads((run / "machine.json").read_text())
    assert machine["versions"]["deepspeed"]
    assert machine["cores"] >= 1
    for name in ("config.json", "deepspeed.json", "commit.txt"):
        copy = run / "checkpoints/step_000012" / name
        assert copy.read_bytes() == (run / name).read_bytes()

    # output: nothing from DeepSpeed, and one report per interval
    assert ended.outputs[1] == ""
    note = "runs/run/deepspeed.json does not set gradient_clipping, so DeepSpeed clips gradients to norm 1.0"
    assert ended.output.count(note) == 1
    assert "DeepSpeed" not in ended.output.replace(note, "")
    assert "Warning" not in ended.output
    assert ended.output.count("step 6/12 · loss") == 1
    assert "Done: 12 steps" in ended.output


def test_without_a_launcher_a_run_has_one_rank(tmp_path, run_file) -> None:
    schedule = {"type": "WarmupCosineLR", "params": {"total_num_steps": 100, "warmup_num_steps": 2}}
    file = run_file(steps=3, ds={"scheduler": schedule})
    ended = rank_processes.run(1, ["--config", str(file)], tmp_path, launcher=False)
    assert "total_num_steps of the DeepSpeed JSON is 100, but train.steps is 3" in ended.output
    assert "1 × cpu" in ended.output


def test_one_and_two_ranks_train_on_the_same_samples(tmp_path, run_file) -> None:
    """In fp32 the weights agree to rounding: global batches and dropout do not depend on the number of ranks."""
    import safetensors.torch

    file = run_file(data="", steps=5, evaluate_every=0)
    weights = []
    for size in (1, 2):
        rank_processes.run(size, ["--config", str(file), f"train.name=r{size}"], tmp_path)
        weights.append(
            safetensors.torch.load_file(tmp_path / f"runs/r{size}/checkpoints/step_000005/model.safetensors")
        )
    one, two = weights
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-5, name  # fp32 sums of four terms in another order


def test_load_run_returns_the_evaluated_weights_without_deepspeed(tmp_path, run_file) -> None:
    file = run_file(steps=6, evaluate_every=2)
    rank_processes.run(2, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/run"
    program = f"""
import sys, torch
sys.path.insert(0, {str(rank_processes.ROOT)!r})
from ds4sci.train.checkpoint import load_run
for which in ("best", "latest", "step_000006"):
    config, task = load_run({str(run)!r}, which=which)
    assert not task.model.training
    rows = task.evaluate(task.model, rank=0, world_size=1, device=torch.device("cpu"))
    print(task.summarize(rows)["score"])
assert "deepspeed" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    best, latest, last = (float(line) for line in done.stdout.split())
    scores = {m["step"]: m["score"] for m in metrics(run, "eval")}
    assert latest == last == pytest.approx(scores[6], rel=1e-6)
    assert best == pytest.approx(max(scores.values()), rel=1e-6)


def test_deepspeed_monitors_get_the_scalars(tmp_path, run_file) -> None:
    monitor = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "toy"}}
    rank_processes.run(2, ["--config", str(run_file(steps=6, ds=monitor))], tmp_path)
    written = {p.name: p.read_text() for p in (tmp_path / "csv/toy").glob("*.csv")}
    assert {"Train_loss.csv", "Train_lr.csv", "Train_grad_norm.csv", "Train_square.csv", "Eval_score.csv"} <= set(
        written
    )
    losses = [line.split(",") for line in written["Train_loss.csv"].splitlines()[1:]]
    assert [int(samples) for samples, _ in losses] == [12, 24]
    logged = [m["loss"] for m in metrics(tmp_path / "runs/run", "train")]
    assert [float(value) for _, value in losses] == pytest.approx(logged)


def test_weights_do_not_depend_on_evaluations_and_checkpoints(tmp_path, run_file) -> None:
    file = run_file(evaluate_every=0, save_every=0)
    for name, every in (("rarely", 0), ("often", 1)):
        arguments = [f"train.name={name}", f"train.evaluate_every={every}", f"train.save_every={every}"]
        rank_processes.run(2, ["--config", str(file), *arguments], tmp_path)
    rarely, often = (tmp_path / f"runs/{n}/checkpoints/step_000012/model.safetensors" for n in ("rarely", "often"))
    assert digest(rarely) == digest(often)


def test_load_run_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        checkpoint.load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint yet"):
        checkpoint.load_run(tmp_path)
