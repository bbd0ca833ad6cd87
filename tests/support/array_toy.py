"""A task on arrays for testing the order of the samples: linear regression with examples that take uneven time."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ds4sci.data.array_shards import write_shard
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayTask
from ds4sci.types import ArrayBatch

EXAMPLES = 30


class DataConfig(ArrayDataConfig):
    kill_at: int = -1
    """Step at which the process kills itself, unless the file KILLED exists."""


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: DataConfig


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, batch: ArrayBatch) -> Tensor:
        return self.layers(batch.inputs)[:, 0]


class ArrayToy(ArrayTask):
    target = "score"

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config.data, seed)
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Model()

    def augment(self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator):
        time.sleep(random.lognormvariate(-7, 1.5))  # another time in every run
        if rng.integers(8) == 0:  # the same examples in every run, on a fast machine too, are overtaken by others
            time.sleep(0.2)
        return inputs + rng.normal(scale=0.1, size=inputs.shape), targets

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.step == self.config.data.kill_at and not Path("KILLED").exists():
            Path("KILLED").touch()
            os.kill(os.getpid(), 9)
        losses = (output - batch.targets).square()
        return losses, {"square": losses.detach().mean()}

    def score(self, output: Tensor, batch: ArrayBatch) -> list[dict[str, Any]]:
        return [{"score": -float(value)} for value in (output - batch.targets).square()]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {"score": sum(row["score"] for row in rows) / len(rows)}


def build(config: Config, *, seed: int, steps: int) -> ArrayToy:
    return ArrayToy(config, seed)


def write_dataset(folder: Path) -> None:
    """Write ``EXAMPLES`` training examples in two shards and six held-out ones."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for split, number, size in (("train", 0, 20), ("train", 1, EXAMPLES - 20), ("valid", 0, 6)):
        inputs = rng.normal(size=(size, 6)).astype(np.float32)
        write_shard(folder, split, number, inputs, np.sin(inputs.sum(1)))
