"""Task: denoising of micrographs, from electron counts with defective pixels to the intensity without noise.

The dataset has inputs [1, n, n], counts, and targets [1, n, n], the intensity relative to that of vacuum. The network
sees counts relative to their mean, and the standard deviation of their noise as a second channel. A training example is
a random square of an image after one of the eight symmetries of the square.

The loss is the mean squared error of the intensity, in units of ``CONTRAST``². Quality is ``gain_db``: by how many dB
the peak signal-to-noise ratio (PSNR) is higher than that of non-local means, calibrated on training pairs, in the mean
over the held-out images.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ds4sci.baselines.non_local_means import NonLocalMeans, mean_square
from ds4sci.metrics.images import psnr
from ds4sci.models import unet
from ds4sci.nn.linear import wide
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayTask
from ds4sci.tasks.evaluations import Evaluation
from ds4sci.tasks.evaluations.denoising import denoising_evaluation
from ds4sci.tasks.image_miniatures import denoising_miniature
from ds4sci.types import ArrayBatch

CONTRAST = 0.05
"""Unit of the intensity inside the network: about the standard deviation of a lattice image."""
HOT_LIMIT = 3.0
"""Counts above this multiple of their median are limited to it: hot pixels carry no information."""


class DataConfig(ArrayDataConfig):
    """``[data]``: the dataset and its symmetries."""

    crop: int | None = Field(64, ge=1)
    """Width of the random square of a training image; null = whole images."""
    symmetries: bool = True
    """Whether training examples are changed by one of the eight symmetries of the square."""


class BaselineConfig(BaseModel):
    """``[baseline]``: non-local means."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    patch: int = Field(13, ge=1)
    """Width of the compared patches, pixels."""
    distance: int = Field(21, ge=1)
    """Largest distance of patches, pixels."""
    calibration_images: int = Field(6, ge=1)
    """Training images on which the strength of the filter is chosen."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: DataConfig
    """Dataset and augmentation."""
    model: unet.Config = unet.Config()
    """The network."""
    baseline: BaselineConfig = BaselineConfig()
    """What the network is compared with."""


class Denoiser(nn.Module):
    """Normalization of counts, and the U-Net: batch → (intensity − 1)/``CONTRAST`` [b, 1, h, w]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: ArrayBatch) -> Tensor:
        counts = batch.inputs.to(next(self.network.parameters()).dtype)
        limit = HOT_LIMIT * counts.flatten(1).median(dim=1).values.clamp(min=1)
        counts = torch.minimum(counts, limit[:, None, None, None])
        mean = counts.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
        noise = (1 / mean).sqrt().expand_as(counts)
        return self.network(torch.cat((counts / mean - 1, noise), dim=1) / CONTRAST)


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.image_miniatures``."""
    return denoising_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> Denoising:
    """Return the task with its network, initialised from ``seed``.

    Raises ValueError if there are no data, or if their shape does not fit the settings.
    """
    return Denoising(config, seed)


class Denoising(ArrayTask):
    """Denoising. See ``ds4sci.tasks.Task`` for the methods."""

    target = "gain_db"

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config.data, seed)
        self.config = config
        counts, clean = self.train[0]
        if counts.ndim != 3 or len(counts) != 1 or counts.shape != clean.shape:
            raise ValueError(
                f"{self.train.files[0]}: inputs {list(counts.shape)} and targets {list(clean.shape)} of an example; "
                "expected [1, n, n] for both"
            )
        if config.data.crop and config.data.crop > min(counts.shape[1:]):
            raise ValueError(
                f"data.crop = {config.data.crop}: images have {counts.shape[1]} × {counts.shape[2]} pixels"
            )
        if config.data.symmetries and not config.data.crop and counts.shape[1] != counts.shape[2]:
            raise ValueError(
                f"data.symmetries: images have {list(counts.shape[1:])} pixels; expected squares or a crop"
            )
        self.model = Denoiser(unet.build(config.model, inputs=2, outputs=1, seed=seed))
        self._baseline_errors: dict[str, float] = {}

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ArrayTask.augment``."""
        height, width = inputs.shape[1:]
        crop = self.config.data.crop
        if crop:
            top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
            inputs, targets = (x[:, top : top + crop, left : left + crop] for x in (inputs, targets))
        number = int(rng.integers(8)) if self.config.data.symmetries else 0
        return square_symmetry(inputs, number), square_symmetry(targets, number)

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.sample_losses``: the mean squared error."""
        predicted = wide(output)
        losses = (predicted - (batch.targets.to(predicted.dtype) - 1) / CONTRAST).square().mean((1, 2, 3))
        return losses, {"mse": losses.detach().mean()}

    @staticmethod
    def intensity(output: Tensor) -> np.ndarray:
        """Return the relative intensity, float64 [b, h, w], of an output of the model."""
        return 1 + CONTRAST * output.double().cpu().numpy()[:, 0]

    @cached_property
    def baseline(self) -> NonLocalMeans:
        """Non-local means, calibrated on the first training images. Raises ValueError without scikit-image."""
        settings = self.config.baseline
        pairs = self.train[: settings.calibration_images]
        counts, clean = ([own[k][0] for own in pairs] for k in (0, 1))
        return NonLocalMeans.fit(counts, clean, settings.patch, settings.distance)

    def baseline_error(self, name: str, counts: np.ndarray, clean: np.ndarray) -> float:
        """Mean squared error of the baseline on one image; computed once for each ``name``."""
        if name not in self._baseline_errors:
            self._baseline_errors[name] = mean_square(self.baseline(counts), clean)
        return self._baseline_errors[name]

    def score(self, output: Tensor, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return the mean squared error of the network and of the baseline, and the range of the clean image."""
        predicted = self.intensity(output)
        counts, clean = batch.inputs.cpu().numpy()[:, 0], batch.targets.double().cpu().numpy()[:, 0]
        return [
            {
                "mse": mean_square(predicted[i], clean[i]),
                "mse_nlm": self.baseline_error(name, counts[i], clean[i]),
                "range": float(np.ptp(clean[i])),
            }
            for i, name in enumerate(batch.ids)
        ]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return means of the PSNR of network and baseline, dB, and of their difference, ``gain_db``."""
        if not rows:
            raise ValueError("no image was evaluated, so there is no error to report; increase data.valid_examples")
        own, baseline = (np.array([psnr(row[key], row["range"]) for row in rows]) for key in ("mse", "mse_nlm"))
        return {
            "gain_db": float(np.mean(own - baseline)), "psnr_db": float(own.mean()),
            "psnr_nlm_db": float(baseline.mean()),
        }  # fmt: skip

    def evaluations(self) -> dict[str, Evaluation]:
        """See ``Task.evaluations``."""
        return {"held_out": denoising_evaluation(self)}


def square_symmetry(image: np.ndarray, number: int) -> np.ndarray:
    """Return ``image`` [..., n, n] after symmetry ``number``, 0 to 7, of the square. Number 0 changes nothing."""
    turned = np.rot90(image, number % 4, axes=(-2, -1))
    return turned[..., ::-1] if number >= 4 else turned
