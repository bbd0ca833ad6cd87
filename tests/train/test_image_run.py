"""Segmentation and denoising on DeepSpeed: gradients of every ZeRO stage on two ranks, and complete runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ds4sci import __version__
from ds4sci.cli.main import app
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.report.run_report import write_report
from ds4sci.tasks.build import build_task
from ds4sci.train import checkpoint
from tests.support import image_step, rank_processes
from tests.support.run_files import losses

ROOT = Path(__file__).resolve().parents[2]


def plain(name: str, folder: Path, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all examples in one process, without DeepSpeed."""
    made = image_step.make_task(name, folder)
    made.model.to(dtype)
    batch = image_step.batch(made)
    batch = replace(batch, inputs=batch.inputs.to(dtype))
    loss = made.loss(made.model(batch), batch)[0]
    loss.backward()
    return float(loss.detach()), {key: p.grad.double() for key, p in made.model.named_parameters()}


def test_two_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    for name in image_step.TASKS:
        image_step.write_data(name, tmp_path)
    rank_processes.call(2, image_step.steps, [str(tmp_path), "[0, 1, 2, 3]"], tmp_path)
    results = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(results) == 4 * len(image_step.TASKS)
    for case, found in results.items():
        name = case.split()[0]
        exact_loss, exact = plain(name, tmp_path / name, torch.float64)
        one_loss, one = plain(name, tmp_path / name, torch.float32)
        size = torch.stack([grad.norm() for grad in exact.values()]).norm()
        allowed = 3 * max(float((one[key] - grad).norm() / size) for key, grad in exact.items())
        assert allowed < 1e-4, case
        assert abs(found["loss"] - exact_loss) <= 3 * max(abs(one_loss - exact_loss), 1e-7 * exact_loss), case
        for key, grad in exact.items():
            assert float((found["grads"][key].view_as(grad) - grad).norm() / size) <= max(allowed, 3e-7), (case, key)
        made = image_step.make_task(name, tmp_path / name)
        rows = made.evaluate(made.model.eval(), rank=0, world_size=1, device=torch.device("cpu"))
        assert found["summary"] == pytest.approx(made.summarize(rows), rel=1e-4), case


@pytest.mark.parametrize("name", image_step.TASKS)
def test_a_run_resumes_and_is_evaluated_and_reported(name: str, tmp_path: Path) -> None:
    settings = {
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    train = {
        "steps": 4, "evaluate_every": 2, "save_every": 2, "keep_last": 9, "log_every": 1, "name": "run",
        "output": str(tmp_path / "runs"),
    }  # fmt: skip
    tree = image_step.sections(name, image_step.write_data(name, tmp_path))
    tree |= {
        "deepspeed": str(tmp_path / "ds.json"),
        "task": {"name": name},
        "train": train,
        run_version.KEY: __version__,
    }
    (tmp_path / "run.json").write_text(json.dumps(tree))
    rank_processes.run(2, ["--config", str(tmp_path / "run.json")], tmp_path)
    run, again = tmp_path / "runs/run", tmp_path / "runs/again"
    shutil.copytree(run, again)
    shutil.rmtree(checkpoint.checkpoint_folder(again, 4))
    rank_processes.run(2, ["--resume", str(again)], tmp_path)
    assert losses(again) == losses(run)
    out = tmp_path / "scores.json"
    done = CliRunner().invoke(app, ["eval", "--run", str(run), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 3
    assert out.with_suffix(".png").stat().st_size > 10_000
    page = write_report(run).read_text()
    assert "<h2>Scores</h2>" in page
    for row in found["comparison"]["rows"]:
        assert row[0] in page
    for entry in found["figures"]:
        assert entry["title"] in page


@pytest.mark.parametrize("name", ["climate", "em_denoise"])
def test_the_benchmark_has_a_miniature_without_its_data(name: str, tmp_path: Path) -> None:
    config = RunConfig.load(ROOT / f"configs/benchmarks/{name}.toml")
    assert config.benchmark is not None
    assert config.benchmark.name == name
    module = import_task(config.task.name)
    miniature = module.miniature(config.settings, tmp_path)
    tree = {
        "deepspeed": str(config.deepspeed),
        "task": {"name": config.task.name},
        "train": {"steps": 1},
        run_version.KEY: __version__,
    } | miniature
    (tmp_path / "miniature.json").write_text(json.dumps(tree))
    made = build_task(RunConfig.load(tmp_path / "miniature.json"))
    assert sum(p.numel() for p in made.model.parameters()) < 10_000
    assert config.benchmark.metric == made.target
    batch = next(made.batches(start_step=0, rank=0, world_size=1, micro_batch_size=2, accumulation_steps=1))
    assert made.loss(made.model(batch), batch)[0].isfinite()
    rows = made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
    assert made.target in made.summarize(rows)
