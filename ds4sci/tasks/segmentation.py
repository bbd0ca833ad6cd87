"""Task: segmentation of fields on the sphere, a class for each point of a latitude–longitude grid.

The dataset has inputs [c, h, w] and targets [h, w] or, from coarse inputs, [2h − 1, 2w]; latitudes include the poles
and longitudes go around the circle. Coarse inputs are interpolated. The network also sees the sine of the latitude and
its cosine. A training example is shifted in longitude and mirrored at the equator at random.

The loss is the mean over all points of weighted cross-entropy. The weight of a class is its frequency in the training
data to the power of −``class_weight_power``, divided by the mean over the points. Quality is the intersection over
union (IoU) of each class over all held-out points together, and its mean ``miou``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.data.sphere import latitudes
from ds4sci.metrics.images import confusion, iou
from ds4sci.models import unet
from ds4sci.nn.linear import wide
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayTask
from ds4sci.tasks.evaluations import Evaluation
from ds4sci.tasks.evaluations.segmentation import segmentation_evaluation
from ds4sci.tasks.image_miniatures import segmentation_miniature
from ds4sci.types import ArrayBatch

STATISTICS = 512
"""Training examples of which the first ones give scales and frequencies."""


class DataConfig(ArrayDataConfig):
    """``[data]``: the dataset, its classes and its symmetries."""

    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the classes 0, 1, …"""
    channels: tuple[str, ...] = ()
    """Names of the channels in pictures; by default channel 0, channel 1, …"""
    shift: bool = True
    """Whether training examples are shifted in longitude."""
    mirror: bool = True
    """Whether training examples are mirrored at the equator, which needs labels without a preferred hemisphere."""
    odd_channels: tuple[int, ...] = ()
    """Numbers of the channels that change sign in the mirror, such as the northward wind."""


class LossConfig(BaseModel):
    """``[loss]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    class_weight_power: float = Field(0.125, ge=0, le=1)
    """p in the weight f^−p of a class with frequency f. 0 = equal weights of all points, 1 = equal of all classes."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: DataConfig
    """Dataset and augmentation."""
    model: unet.Config = unet.Config(periodic=True)
    """The network."""
    loss: LossConfig = LossConfig()
    """Weights of the classes."""


class SphereNet(nn.Module):
    """Normalization and interpolation of the fields, and the U-Net: batch → logits [b, classes, h, w]."""

    mean: Tensor
    scale: Tensor
    coordinates: Tensor

    def __init__(self, network: nn.Module, mean: np.ndarray, scale: np.ndarray, rows: int, refined: bool) -> None:
        """
        mean, scale  of each channel
        rows         of the grid of the targets
        refined      whether that grid has half the spacing of the inputs
        """
        super().__init__()
        self.network, self.refined = network, refined
        angle = latitudes(rows)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32)[:, None, None], persistent=False)
        coordinates = np.stack([np.sin(angle), np.cos(angle)])[..., None]
        self.register_buffer("coordinates", torch.as_tensor(coordinates, dtype=torch.float32), persistent=False)

    def forward(self, batch: ArrayBatch) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        x = ((batch.inputs - self.mean) / self.scale).to(dtype)
        x = refine(x) if self.refined else x
        places = self.coordinates.to(dtype).expand(len(x), -1, -1, x.shape[-1])
        return self.network(torch.cat((x, places), dim=1))


def refine(x: Tensor) -> Tensor:
    """Bilinear interpolation to half the spacing, as ``ds4sci.data.sphere.refine``: [b, c, h, w] → [b, c, 2h−1, 2w]."""
    wide = torch.stack((x, (x + x.roll(-1, -1)) / 2), dim=-1).flatten(-2)
    between = torch.stack((wide[..., :-1, :], (wide[..., 1:, :] + wide[..., :-1, :]) / 2), dim=-2).flatten(-3, -2)
    return torch.cat((between, wide[..., -1:, :]), dim=-2)


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.image_miniatures``."""
    return segmentation_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> Segmentation:
    """Return the task with its network, initialised from ``seed``.

    Raises ValueError if there are no data, or if their shape or classes do not fit the settings.
    """
    return Segmentation(config, seed)


class Segmentation(ArrayTask):
    """Segmentation. See ``ds4sci.tasks.Task`` for the methods."""

    target = "miou"

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config.data, seed)
        self.config, self.classes = config, config.data.classes
        inputs, labels = (np.stack(x) for x in zip(*self.train[:STATISTICS], strict=True))
        refined = self._check_shapes(inputs, labels)
        frequency = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
        if len(frequency) > len(self.classes):
            raise ValueError(
                f"{self.train.files[0]}: class {len(frequency) - 1}; data.classes names {len(self.classes)} classes"
            )
        weights = np.maximum(frequency, 1e-6) ** -config.loss.class_weight_power
        self.class_weights = weights / (frequency * weights).sum()
        names = config.data.channels or tuple(f"channel {i}" for i in range(inputs.shape[1]))
        if len(names) != inputs.shape[1] or not set(config.data.odd_channels) <= set(range(len(names))):
            raise ValueError(
                f"data.channels has {len(names)} names and data.odd_channels = {list(config.data.odd_channels)}; the "
                f"dataset has {inputs.shape[1]} channels"
            )
        self.channels = names
        odd = np.isin(np.arange(len(names)), config.data.odd_channels)
        # a mean of an odd channel would break the symmetry
        mean = np.where(odd, 0.0, inputs.mean((0, 2, 3), dtype=np.float64))
        scale = np.sqrt(np.square(inputs - mean[:, None, None]).mean((0, 2, 3), dtype=np.float64))
        network = unet.build(config.model, inputs=len(names) + 2, outputs=len(self.classes), seed=seed)
        self.model = SphereNet(network, mean, np.maximum(scale, 1e-30), labels.shape[1], refined)

    def _check_shapes(self, inputs: np.ndarray, labels: np.ndarray) -> bool:
        """Return whether the targets have half the spacing of the inputs. Raises ValueError if neither fits."""
        if inputs.ndim == 4 and labels.ndim == 3 and np.issubdtype(labels.dtype, np.integer):
            h, w = inputs.shape[2:]
            if labels.shape[1:] in ((h, w), (2 * h - 1, 2 * w)):
                return labels.shape[1:] != (h, w)
        raise ValueError(
            f"{self.train.files[0]}: inputs {list(inputs.shape[1:])} and targets {labels.dtype} "
            f"{list(labels.shape[1:])} of an example; expected inputs [channels, h, w] and integers [h, w] or "
            "[2h − 1, 2w]"
        )

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ArrayTask.augment``."""
        if self.config.data.shift:
            columns = int(rng.integers(inputs.shape[-1]))
            inputs = np.roll(inputs, columns, -1)
            targets = np.roll(targets, columns * (targets.shape[-1] // inputs.shape[-1]), -1)
        if self.config.data.mirror and rng.integers(2):
            inputs, targets = inputs[..., ::-1, :].copy(), targets[..., ::-1, :]
            inputs[list(self.config.data.odd_channels)] *= -1
        return inputs, targets

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.sample_losses``: the cross-entropy with the weights of the classes."""
        logits = wide(output)
        weight = torch.as_tensor(self.class_weights, dtype=logits.dtype, device=logits.device)
        # the mean over points: dividing by the sum of their weights would depend on the other examples
        losses = F.cross_entropy(logits, batch.targets, weight=weight, reduction="none").mean((1, 2))
        return losses, {"cross_entropy": losses.detach().mean()}

    @torch.no_grad()
    def sample_errors(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, Tensor]:
        """See ``ArrayTask.sample_errors``: means over the points."""
        probabilities = wide(output).softmax(1)
        one_hot = F.one_hot(batch.targets, len(self.classes)).movedim(-1, 1)
        correct = probabilities.argmax(1) == batch.targets
        return (probabilities - one_hot).norm(dim=1).mean((1, 2)), correct.to(probabilities.dtype).mean((1, 2))

    def score(self, output: Tensor, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return the confusion matrix of each example, [label][class]."""
        predicted = output.argmax(1).cpu().numpy()
        return [
            {"confusion": confusion(labels, own, len(self.classes)).tolist()}
            for labels, own in zip(batch.targets.cpu().numpy(), predicted, strict=True)
        ]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return the IoU of each class over all rows, ``iou_CLASS``, and its mean over the classes that occur."""
        if not rows:
            raise ValueError("no example was evaluated, so there is no IoU to report; increase data.valid_examples")
        return self.iou_metrics(np.sum([row["confusion"] for row in rows], axis=0))

    def iou_metrics(self, matrix: np.ndarray) -> dict[str, float]:
        """Return ``miou`` and ``iou_CLASS`` of a confusion matrix. A class that does not occur has none."""
        values = iou(np.asarray(matrix))
        each = {
            f"iou_{name.replace(' ', '_')}": float(value)
            for name, value in zip(self.classes, values, strict=True)
            if not np.isnan(value)
        }
        return {"miou": float(np.mean(list(each.values())))} | each

    def evaluations(self) -> dict[str, Evaluation]:
        """See ``Task.evaluations``."""
        return {"held_out": segmentation_evaluation(self)}
