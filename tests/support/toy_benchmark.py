"""Run file of the toy task with ``[benchmark]``: 12 steps, an evaluation after every second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPSPEED = {
    "train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
}  # fmt: skip
EASY, HARD = -100.0, 1.0
"""Targets of ``score`` that every and no evaluation reaches."""


def write(
    folder: Path,
    target: float = EASY,
    *,
    metric: str = "score",
    direction: str = "higher",
    datasets: tuple[str, ...] = (),
    **train: Any,
) -> Path:
    """Write toy.toml and ds.json into ``folder``. Other keywords are keys of ``[train]``."""
    (folder / "ds.json").write_text(json.dumps(DEEPSPEED))
    settings = {"steps": 12, "evaluate_every": 2, "log_every": 3} | train
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    file = folder / "toy.toml"
    file.write_text(
        f"""deepspeed = "ds.json"
seed = 3
[task]
name = "tests.support.toy_task"
[train]
{lines}
[benchmark]
name = "toy"
title = "A toy"
metric = "{metric}"
target = {target!r}
direction = "{direction}"
datasets = {json.dumps(datasets)}
[benchmark.hyperparameters]
train.steps = 12
optimizer.params.lr = 0.01
"""
    )
    return file
