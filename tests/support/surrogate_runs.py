"""Run folders of untrained surrogates, without a training."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from ds4sci import __version__
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.tasks.build import build_task
from ds4sci.train import checkpoint
from tests.support import image_step


def make_run(folder: Path, data: Path, seed: int) -> Path:
    """A run folder with one checkpoint of new weights."""
    step = checkpoint.checkpoint_folder(folder, 1)
    step.mkdir(parents=True)
    settings = {"train_batch_size": 2, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}
    (step / "deepspeed.json").write_text(json.dumps(settings))
    tree = image_step.sections("surrogate", data) | {
        "deepspeed": "deepspeed.json", "task": {"name": "surrogate"}, "seed": seed, "train": {"steps": 1},
        run_version.KEY: __version__,
    }  # fmt: skip
    (step / "config.json").write_text(json.dumps(tree))
    model = build_task(RunConfig.load(step / "config.json")).model
    save_file(dict(model.state_dict()), step / "model.safetensors")
    (folder / "checkpoints" / "best").write_text(step.name)
    return folder
