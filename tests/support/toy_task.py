"""A task for testing the trainer: a small regression whose data is a pure function of (seed, step)."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ds4sci.tasks import Task


class ModelConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 16
    dropout: float = 0.1


class DataConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    nan_at: list[int] = []
    """Steps at which sample 1 (of the global batch) has a NaN in its input."""
    bad_gradient_at: list[int] = []
    """Steps at which the loss is finite but its gradient is not."""
    kill_at: int = -1
    """Step at which rank 1 sends itself SIGKILL, unless the file KILLED exists."""
    raise_at: int = -1
    """Step at which rank 1 raises."""
    full_disk_at: int = -1
    """Step from which rank 1 cannot write files of more than 1000 bytes."""
    step_seconds: float = 0.0


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()


@dataclass(frozen=True)
class ToyBatch:
    ids: tuple[str, ...]
    x: Tensor
    y: Tensor
    step: int
    rank: int

    def to(self, device: Any) -> ToyBatch:
        return replace(self, x=self.x.to(device), y=self.y.to(device))


class ToyModel(nn.Module):
    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(8, config.width), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(config.width, 2)
            )
        self.register_buffer("scale", torch.ones(1))

    def forward(self, batch: ToyBatch) -> Tensor:
        return self.layers(batch.x.to(self.layers[0].weight.dtype)).float().mean(-1) * self.scale.float()


class ToyTask(Task):
    target = "score"

    def __init__(self, config: Config, seed: int, steps: int) -> None:
        self.config, self.seed, self.steps = config, seed, steps
        self.model = ToyModel(config.model, seed)

    def _sample(self, step: int, j: int) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng([self.seed, step, j])
        x = rng.normal(size=8).astype(np.float32)
        if step in self.config.data.nan_at and j == 1:
            x[3] = np.nan
        return x, float(np.sin(np.nan_to_num(x).sum()))

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[ToyBatch]:
        torch.rand(1)  # a DataLoader draws from the generator when it starts
        step = start_step
        while True:
            for k in range(accumulation_steps):
                first = (k * world_size + rank) * micro_batch_size
                samples = [self._sample(step, first + i) for i in range(micro_batch_size)]
                x = torch.tensor(np.stack([s[0] for s in samples]))
                y = torch.tensor([s[1] for s in samples], dtype=torch.float32)
                yield ToyBatch(tuple(f"s{step}.{first + i}" for i in range(micro_batch_size)), x, y, step, rank)
            step += 1

    def loss(self, output: Tensor, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        data = self.config.data
        if data.step_seconds:
            time.sleep(data.step_seconds)
        if batch.step == data.kill_at and batch.rank == 1 and not Path("KILLED").exists():
            Path("KILLED").touch()
            os.kill(os.getpid(), 9)
        if batch.step == data.raise_at and batch.rank == 1:
            raise RuntimeError("the toy broke on purpose")
        if batch.step == data.full_disk_at and batch.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        square = (output - batch.y).square().mean()
        loss = square
        if batch.step in data.bad_gradient_at and batch.rank == 0:
            # sqrt has an infinite slope at 0: the loss is finite, its gradient is not
            loss = loss + (output - output.detach()).square().sum().sqrt()
        return loss, {"square": square.detach(), "mean": output.detach().mean()}

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        rows = []
        for i in range(rank, 8, world_size):
            rng = np.random.default_rng([self.seed, 10_000, i])
            x = torch.tensor(rng.normal(size=(1, 8)), dtype=torch.float32, device=device)
            output = model(ToyBatch((f"v{i}",), x, x.sum(-1).sin(), 0, rank))
            torch.rand(3)  # draws that must not affect training
            rows.append({"id": f"v{i}", "score": -float((output - x.sum(-1).sin()).square().mean())})
            if self.config.data.step_seconds:
                time.sleep(self.config.data.step_seconds)
        return rows

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {"score": sum(r["score"] for r in rows) / len(rows)}


def build(config: Config, *, seed: int, steps: int) -> ToyTask:
    return ToyTask(config, seed, steps)
