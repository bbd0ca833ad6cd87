"""Partial retraining of a surrogate on DeepSpeed: initial weights from a file, frozen layers, exact resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ds4sci import __version__
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.tasks import surrogate
from ds4sci.tasks.build import build_task
from ds4sci.train import checkpoint
from tests.support import image_step, rank_processes
from tests.support.run_files import losses

ROOT = Path(__file__).resolve().parents[2]


def test_frozen_layers_keep_the_weights_of_the_source_and_a_run_resumes_exactly(tmp_path: Path) -> None:
    data = image_step.write_data("surrogate", tmp_path)
    source = image_step.make_task("surrogate", data).model
    with torch.no_grad():
        source.trunk[0].weight.mul_(1.5)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    settings = {
        "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    tree = image_step.sections("surrogate", data) | {
        "deepspeed": str(tmp_path / "ds.json"), "task": {"name": "surrogate"}, run_version.KEY: __version__,
        "train": {
            "steps": 4, "save_every": 2, "keep_last": 9, "log_every": 1, "name": "run",
            "output": str(tmp_path / "runs"), "weights": str(tmp_path / "source.safetensors"),
        },
    }  # fmt: skip
    tree["model"] |= {"freeze": ["trunk.*"]}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    rank_processes.run(2, ["--config", str(tmp_path / "run.json")], tmp_path)
    run, again = tmp_path / "runs/run", tmp_path / "runs/again"
    trained = load_file(checkpoint.checkpoint_folder(run, 4) / "model.safetensors")
    for name, before in source.state_dict().items():
        assert torch.equal(trained[name], before) is name.startswith("trunk."), name
    shutil.copytree(run, again)
    shutil.rmtree(checkpoint.checkpoint_folder(again, 4))
    (tmp_path / "source.safetensors").unlink()
    rank_processes.run(2, ["--resume", str(again)], tmp_path)
    assert losses(again) == losses(run)
    resumed = load_file(checkpoint.checkpoint_folder(again, 4) / "model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in trained.items())


def test_shipped_run_files_have_miniatures_without_their_data(tmp_path: Path) -> None:
    files = sorted((ROOT / "configs/cogsim").glob("*.toml"))
    assert len(files) == 4
    for file in files:
        config = RunConfig.load(file)
        folder = tmp_path / file.stem
        folder.mkdir()
        sections = surrogate.miniature(config.settings, folder)
        tree = sections | {
            "deepspeed": str(config.deepspeed), "task": {"name": "surrogate"}, "train": {"steps": 1},
            run_version.KEY: __version__,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(tree))
        made = build_task(RunConfig.load(folder / "run.json"))
        trained = {name.split(".")[0] for name, p in made.model.named_parameters() if p.requires_grad}
        assert trained == ({"scalars", "field"} if "experiment" in file.stem else {"trunk", "scalars", "field"})
        assert config.benchmark is None or config.benchmark.metric in made.summarize(
            made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
        )
