"""Task: regress numbers from periodic volumes, such as cosmological parameters from matter density boxes.

The dataset has inputs [c, n, n, n] and targets [t] (``ds4sci.data.array_shards``). A training example is shifted by a
random number of cells along each axis and changed by one of the 48 symmetries of the cube, where the data allow it.
The loss is the mean squared error over the targets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ds4sci.models import cnn3d
from ds4sci.nn.linear import wide
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayExample, ArrayTask, collate
from ds4sci.tasks.evaluations import Evaluation
from ds4sci.tasks.evaluations.volumes import volume_evaluation
from ds4sci.tasks.miniatures import volume_miniature
from ds4sci.types import ArrayBatch

_WHITENING_STREAM = 4
"""Key of a random stream; 0 to 3 are those of ``ds4sci.data.loader`` and ``ArrayTask``."""


class DataConfig(ArrayDataConfig):
    """``[data]``: the dataset, its symmetries and the names of its targets."""

    symmetries: bool = True
    """Whether training examples are changed by one of the 48 rotations and reflections of the cube, the same for all
    channels."""
    shifts: bool = True
    """Whether training examples are shifted by whole cells, as periodic volumes may be."""
    targets: tuple[str, ...] = ()
    """Names of the targets in metrics and pictures; by default target_0, target_1, …"""
    channels: tuple[str, ...] = ()
    """Names of the channels in pictures; by default channel 0, channel 1, …"""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: DataConfig
    """Dataset and augmentation."""
    model: cnn3d.Config = cnn3d.Config()
    """The network."""


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return volume_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> VolumeRegression:
    """Return the task with its network, initialised from ``seed`` and, for whitening, from training examples.

    Raises ValueError if there are no data, or if their shape does not fit the settings.
    """
    return VolumeRegression(config, seed)


class VolumeRegression(ArrayTask):
    """Regression from volumes. See ``ds4sci.tasks.Task`` for the methods."""

    target = "score"

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config.data, seed)
        self.config = config
        inputs, targets = self.train[0]
        self.shape = inputs.shape
        if inputs.ndim != 4 or len(set(inputs.shape[1:])) != 1 or targets.ndim != 1:
            raise ValueError(
                f"{self.train.files[0]}: inputs {list(inputs.shape)} and targets {list(targets.shape)} of an example; "
                "expected [channels, n, n, n] and [targets]"
            )
        self.names = _names("targets", config.data.targets, len(targets), "target_{}")
        self.channels = _names("channels", config.data.channels, len(inputs), "channel {}")
        self.model = cnn3d.build(
            config.model, channels=len(inputs), outputs=len(targets), size=inputs.shape[1], seed=seed
        )
        if self.model.whitening is not None and not self.model.whitening.weight.is_meta:
            self._whiten(self.model)

    def _whiten(self, model: cnn3d.VolumeNet) -> None:
        """Initialise the whitening layer from the first training examples, augmented; they are in random order."""
        count, size = min(self.config.model.whitening_examples, len(self.train)), self.data.evaluation_batch

        def example(number: int) -> ArrayExample:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_WHITENING_STREAM, number)))
            inputs, targets = self.train[number]
            return ArrayExample(str(number), *self.augment(inputs, targets, rng))

        groups = (range(first, min(first + size, count)) for first in range(0, count, size))
        model.whiten(collate([example(number) for number in group]).inputs for group in groups)

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ArrayTask.augment``."""
        if self.config.data.shifts:
            shift = tuple(map(int, rng.integers(inputs.shape[1], size=3)))
            inputs = np.roll(inputs, shift, axis=(1, 2, 3))
        if self.config.data.symmetries:
            inputs = cube_symmetry(inputs, int(rng.integers(48)))
        return inputs, targets

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.sample_losses``: the mean squared error over the targets."""
        difference = wide(output) - batch.targets
        losses = difference.square().mean(1)
        return losses, {"mse": losses.detach().mean(), "mae": difference.detach().abs().mean()}

    def score(self, output: Tensor, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return predicted and true targets of each example."""
        predicted, true = (x.double().cpu().tolist() for x in (output, batch.targets))
        return [{"predicted": a, "true": b} for a, b in zip(predicted, true, strict=True)]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return the mean absolute error over all targets (``mae``) and of each, ``mse`` and ``score`` = −mae."""
        if not rows:
            raise ValueError("no volume was evaluated, so there is no error to report; increase data.valid_examples")
        difference = np.array([row["predicted"] for row in rows]) - np.array([row["true"] for row in rows])
        each = np.abs(difference).mean(axis=0)
        mae = float(each.mean())
        metrics = {"mae": mae, "mse": float(np.square(difference).mean()), "score": -mae}
        return metrics | {f"mae_{name}": float(x) for name, x in zip(self.names, each, strict=True)}

    def evaluations(self) -> dict[str, Evaluation]:
        """See ``Task.evaluations``."""
        return {"held_out": volume_evaluation(self)}


def cube_symmetry(volume: np.ndarray, number: int) -> np.ndarray:
    """Return ``volume`` [..., n, n, n] after symmetry ``number``, 0 to 47, of the cube: axes permuted, some reversed.

    Number 0 changes nothing. The result is a view.
    """
    permutation, signs = divmod(number, 8)
    order = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[permutation]
    lead = volume.ndim - 3
    moved = volume.transpose(*range(lead), *(lead + axis for axis in order))
    return np.flip(moved, tuple(lead + axis for axis in range(3) if signs >> axis & 1))


def _names(key: str, given: tuple[str, ...], count: int, pattern: str) -> tuple[str, ...]:
    if given and len(given) != count:
        raise ValueError(f"data.{key} has {len(given)} names; the dataset has {count} {key}")
    return given or tuple(pattern.format(i) for i in range(count))
