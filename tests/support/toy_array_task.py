"""A task on arrays for tests: linear regression of a dataset of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ds4sci.data.array_shards import write_shard
from ds4sci.datasets import manifest
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayTask
from ds4sci.types import ArrayBatch


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: ArrayDataConfig


class LinearModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        nn.init.zeros_(self.linear.weight)

    def forward(self, batch: ArrayBatch) -> Tensor:
        return self.linear(batch.inputs)


class LinearTask(ArrayTask):
    target = "score"

    def __init__(self, data: ArrayDataConfig, seed: int) -> None:
        super().__init__(data, seed)
        self.model = LinearModel()

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = (output - batch.targets).square().flatten(1).mean(1)
        return losses, {"square": losses.detach().mean()}

    def score(self, output: Any, batch: ArrayBatch) -> list[dict[str, Any]]:
        return [{"error": float(error)} for error in (output - batch.targets).abs().mean(-1)]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {"score": -sum(row["error"] for row in rows) / len(rows)}


def build(config: Config, *, seed: int, steps: int) -> LinearTask:
    torch.manual_seed(seed)
    return LinearTask(config.data, seed)


def write_dataset(folder: Path) -> Path:
    """Write a dataset of three training shards and one of validation, with its manifest."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, number in (("train", 0), ("train", 1), ("train", 2), ("valid", 0)):
        inputs = rng.normal(size=(8, 4)).astype(np.float32)
        write_shard(folder, split, number, inputs, inputs.sum(1, keepdims=True))
    manifest.write(folder, "toy_arrays", "1")
    return folder
