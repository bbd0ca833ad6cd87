"""Base of the tasks whose examples are arrays of one shape, stored in shards: volumes, images, fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ds4sci.data.array_shards import ArrayShards
from ds4sci.data.loader import make_rng
from ds4sci.data.sample_order import OrderConfig, Share, ordered_batches
from ds4sci.data.sample_schedule import SampleKeys, SampleSchedule
from ds4sci.data.surrogate_variables import NormalizedShards
from ds4sci.datasets import store
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.sampled_task import SampledTask
from ds4sci.types import ArrayBatch

_SAMPLE_STREAM = 3
"""Key of the random stream of an example; 0 to 2 are those of ``ds4sci.data.loader``."""


class ArrayDataConfig(OrderConfig, SampleKeys):
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

    def folder(self) -> Path:
        """The folder of the shards. Raises ValueError, with the command that gets the dataset, if it does not exist or
        lacks a file of its manifest."""
        return store.lookup(self.path)

    def moved_to(self, folder: Path) -> ArrayDataConfig:
        """This section with the data in ``folder``."""
        return self.model_copy(update={"path": folder})


class ArrayExample(NamedTuple):
    """Name, input and target of an example, its number in the training set (−1 outside training), and the factor of its
    loss."""

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    sample: int = -1
    factor: float = 1.0


class ArrayTask(SampledTask):
    """Data of a task on arrays. Subclasses set ``model`` and ``target`` and define losses, score and summary."""

    def __init__(self, data: ArrayDataConfig, seed: int) -> None:
        self.data, self.seed = data, seed
        self.train, self.valid = self.open_examples("train"), self.open_examples("valid")
        self.schedule = SampleSchedule(data, self.sample_names(), seed)

    def open_examples(self, split: Split) -> ArrayShards | NormalizedShards:
        """Return the (input, target) examples of a split. The default opens the shards in the folder of the data."""
        return ArrayShards.find(self.data.folder(), split)

    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``."""
        return [f"train {number}" for number in range(len(self.train))]

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, ArrayBatch]]:
        """See ``ds4sci.tasks.SampleScoring``."""
        count = len(self.train if split == "train" else self.valid)
        for number in range(count):
            yield number, collate([ArrayExample(f"{split} {number}", *self.example(split, number))])

    def example(self, split: Split, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input, target) of an example as evaluations use it, without augmentation."""
        inputs, targets = (self.train if split == "train" else self.valid)[number]
        return inputs, targets

    @property
    def samples(self) -> SampleKeys:
        """See ``SampledTask``."""
        return self.data

    @abstractmethod
    def sample_losses(self, output: Any, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each example, [b], and named, detached means over the examples."""

    def sample_errors(self, output: Any, batch: ArrayBatch) -> tuple[Tensor, Tensor] | None:
        """Return, for each example [b], the mean distance of the predicted probabilities from the one-hot labels, and
        the part of the labels that is predicted. The default is that of a task without classes: None."""
        return None

    def sample_error(self, output: Any, batch: ArrayBatch) -> Tensor | None:
        """See ``ds4sci.tasks.SampleScoring``."""
        found = self.sample_errors(output, batch)
        return None if found is None else found[0].mean()

    @property
    def group(self) -> SequenceGroup:
        """Ranks that an example is sharded across. The default is one rank."""
        return SINGLE_RANK

    def sample_sizes(self, batch: ArrayBatch) -> Tensor | None:
        """Return what the loss of each example [b] is a mean over, if the mean over a batch counts that, as
        ``Task.weight`` does. The default, None, counts examples."""
        return None

    def loss(self, output: Any, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Task.loss``: this rank's part of the mean of ``sample_losses``, with the factors of the samples."""
        losses, terms = self.sample_losses(output, batch)
        errors, correct = (None, None)
        if self.data.record_scores and (found := self.sample_errors(output, batch)) is not None:
            errors, correct = found
        sizes = self.sample_sizes(batch)
        loss = self.mean_loss(losses, batch, errors=errors, correct=correct, sizes=sizes, group=self.group)
        return loss, terms

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one training example, changed by random symmetries. The default returns it unchanged."""
        return inputs, targets

    @abstractmethod
    def score(self, output: Any, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return the row of plain values of each example of an evaluation, without ``id``."""

    def train_samples(self) -> int:
        """See ``Task.train_samples``."""
        return len(self.schedule.kept)

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[ArrayBatch]:
        """See ``Task.batches``. The order is one shuffled epoch after another, or that of ``data.order``."""
        share = Share(start_step, rank, world_size, micro_batch_size, accumulation_steps)
        schedule = self.start_schedule(self.schedule, share, workers=self.data.workers, order=self.data)

        def make(position: int) -> ArrayExample:
            rng = make_rng(self.seed, _SAMPLE_STREAM, *divmod(position, share.step_size))
            sample, factor = schedule.at(position)
            inputs, targets = self.train[sample]
            inputs, targets = self.augment(inputs, targets, rng)
            return ArrayExample(f"train {sample}", inputs, targets, sample, factor)

        def name(position: int) -> str:
            return f"train {schedule.at(position)[0]}"

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
            batch = collate([ArrayExample(f"valid {i}", *self.example("valid", i)) for i in numbers]).to(device)
            with torch.no_grad():
                scores = self.score(model(batch), batch)
            rows += [{"id": name} | row for name, row in zip(batch.ids, scores, strict=True)]
        return rows[: len(shard)]


def collate(examples: Sequence[ArrayExample], step: int = 0) -> ArrayBatch:
    """Stack examples. Floating-point arrays become float32, integers int64."""
    names, inputs, targets, samples, factors = zip(*examples, strict=True)
    return ArrayBatch(
        tuple(names), _stack(inputs), _stack(targets), step, torch.tensor(samples, dtype=torch.int64),
        torch.tensor(factors, dtype=torch.float32),
    )  # fmt: skip


def _stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    stacked = np.stack(arrays)
    dtype = np.float32 if np.issubdtype(stacked.dtype, np.floating) else np.int64
    return torch.from_numpy(stacked.astype(dtype, copy=False))
