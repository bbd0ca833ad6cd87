"""Fixtures: run files of the toy task, and a trained run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ADAM = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}
SCHEDULE = {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-2, "warmup_num_steps": 10, "warmup_type": "linear"}}


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes toy.toml and ds.json. Keywords: ``[train]`` keys; ``data``: TOML; ``ds``: JSON keys."""

    def write(*, data: str = "", ds: dict[str, Any] | None = None, **train: Any) -> Path:
        config = {
            "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,
            "optimizer": ADAM, "scheduler": SCHEDULE,
        } | (ds or {})  # fmt: skip
        (tmp_path / "ds.json").write_text(json.dumps(config))
        settings = {"steps": 12, "evaluate_every": 4, "save_every": 5, "log_every": 3, "name": "run"} | train
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        file = tmp_path / "toy.toml"
        head = 'deepspeed = "ds.json"\nseed = 3\n[task]\nname = "tests.support.toy_task"'
        file.write_text(f"{head}\n[train]\n{lines}\n[data]\n{data}\n")
        return file

    return write


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Function that makes a run folder of a task, as training does, with trainable weights changed by noise."""
    import safetensors.torch

    from ds4sci.config.run_file import RunConfig
    from ds4sci.tasks.build import build_task

    def make(file: Path) -> Path:
        run = tmp_path / "made"
        folder = run / "checkpoints" / "step_000001"
        folder.mkdir(parents=True)
        config = RunConfig.load(file)
        task = build_task(config)
        with torch.no_grad():
            for name, parameter in task.model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 9)
        config.save(folder)
        task.save_assets(run / "model")
        own = dict(task.model.named_parameters()) | dict(task.model.named_buffers())
        state = {name: own[name].detach().clone() for name in task.model.state_dict() if name in own}
        safetensors.torch.save_file(state, folder / "model.safetensors")
        (run / "checkpoints" / "best").write_text("step_000001")
        return run

    return make
