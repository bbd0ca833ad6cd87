"""Base of the tasks whose examples are arrays of one shape, stored in shards: volumes, images, fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ds4sci.data.array_shards import ArrayShards
from ds4sci.data.loader import make_rng, shuffled_index
from ds4sci.data.sample_order import OrderConfig, Share, ordered_batches
from ds4sci.data.sample_selection import SelectionConfig, identity_of, kept_samples, require_a_step
from ds4sci.datasets import store
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.task import Task
from ds4sci.types import ArrayBatch

_SAMPLE_STREAM = 3
"""Key of the random stream of an example; 0 to 2 are those of ``ds4sci.data.loader``."""


class ArrayDataConfig(OrderConfig):
    """``[data]``: the dataset, the order of its examples, and how many examples an evaluation scores."""

    path: Path
    """Folder with the shards ``train-*.safetensors`` and ``valid-*.safetensors``, or ``NAME-VERSION`` of a dataset of
    ``ds4sci data list``."""
    valid_examples: int | None = Field(None, ge=1)
    """Number of held-out examples of an evaluation, the first ones; by default all."""
    evaluation_batch: int = Field(8, ge=1)
    """Examples per forward pass of an evaluation."""
    workers: int = Field(0, ge=0)
    """Threads that prepare examples in advance; 0 = in the training loop. Does not change the examples."""
    selection: SelectionConfig | None = None
    """``[data.selection]``: train on a part of the examples."""

    def folder(self) -> Path:
        """The folder of the shards. Raises ValueError, with the command that gets the dataset, if it does not exist or
        lacks a file of its manifest."""
        return store.lookup(self.path)

    def moved_to(self, folder: Path) -> ArrayDataConfig:
        """This section with the data in ``folder``."""
        return self.model_copy(update={"path": folder})


class ArrayTask(Task):
    """Data of a task on arrays. Subclasses set ``model`` and ``target`` and define loss, score and summary."""

    def __init__(self, data: ArrayDataConfig, seed: int) -> None:
        self.data, self.seed = data, seed
        folder = data.folder()
        self.train, self.valid = ArrayShards.find(folder, "train"), ArrayShards.find(folder, "valid")
        self.kept = np.arange(len(self.train))
        if data.selection is not None:
            self.kept = kept_samples(data.selection, self.sample_names())

    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``."""
        return [f"train {number}" for number in range(len(self.train))]

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, ArrayBatch]]:
        """See ``ds4sci.tasks.SampleScoring``."""
        count = len(self.train if split == "train" else self.valid)
        return ((number, collate([(f"{split} {number}", *self.example(split, number))])) for number in range(count))

    def example(self, split: Split, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input, target) of an example as evaluations use it, without augmentation."""
        inputs, targets = (self.train if split == "train" else self.valid)[number]
        return inputs, targets

    def sample_error(self, output: Any, batch: ArrayBatch) -> Tensor | None:
        """See ``ds4sci.tasks.SampleScoring``. The default is that of a task without classes."""
        return None

    def fixed_inputs(self) -> dict[str, str]:
        """See ``Task.fixed_inputs``."""
        return identity_of(selection=self.data.selection)

    def augment(self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Sequence[np.ndarray]:
        """Return one training example, changed by random symmetries. The default returns it unchanged."""
        return inputs, targets

    @abstractmethod
    def score(self, output: Any, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return the row of plain values of each example of an evaluation, without ``id``."""

    def train_samples(self) -> int:
        """See ``Task.train_samples``."""
        return len(self.kept)

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[ArrayBatch]:
        """See ``Task.batches``. The order is one shuffled epoch after another, or that of ``data.order``."""
        share = Share(start_step, rank, world_size, micro_batch_size, accumulation_steps)
        require_a_step(self.data.selection, len(self.kept), share.step_size)

        def index(position: int) -> int:
            return int(self.kept[shuffled_index(self.seed, position, len(self.kept))])

        def make(position: int) -> tuple[Any, ...]:
            rng = make_rng(self.seed, _SAMPLE_STREAM, *divmod(position, share.step_size))
            inputs, targets = self.train[index(position)]
            return name(position), *self.augment(inputs, targets, rng)

        def name(position: int) -> str:
            return f"train {index(position)}"

        return ordered_batches(
            make, collate, name, config=self.data, share=share, delivery=self.delivery, workers=self.data.workers
        )

    @property
    def reorders_samples(self) -> bool:
        """See ``Task.reorders_samples``."""
        return self.data.order == "ready"

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        """See ``Task.evaluate``. Ranks with fewer examples repeat one, and drop its rows."""
        size = min(self.data.valid_examples or len(self.valid), len(self.valid))
        shard = list(range(rank, size, world_size))
        per_rank = -(-size // world_size)
        padded = shard + [rank % size] * (per_rank - len(shard))
        rows = []
        for first in range(0, per_rank, self.data.evaluation_batch):
            numbers = padded[first : first + self.data.evaluation_batch]
            batch = collate([(f"valid {i}", *self.example("valid", i)) for i in numbers]).to(device)
            with torch.no_grad():
                scores = self.score(model(batch), batch)
            rows += [{"id": name} | row for name, row in zip(batch.ids, scores, strict=True)]
        return rows[: len(shard)]


def collate(examples: Sequence[tuple[Any, ...]], step: int = 0) -> ArrayBatch:
    """Stack (id, input, target) examples. Floating-point arrays become float32, integers int64."""
    ids, inputs, targets = zip(*examples, strict=True)
    return ArrayBatch(tuple(ids), _stack(inputs), _stack(targets), step)


def _stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    stacked = np.stack(arrays)
    dtype = np.float32 if np.issubdtype(stacked.dtype, np.floating) else np.int64
    return torch.from_numpy(stacked.astype(dtype, copy=False))
