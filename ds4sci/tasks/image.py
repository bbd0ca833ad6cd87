"""Task: images and volumes by a vision transformer: masked-autoencoder pretraining, segmentation, classification.

The dataset is made by ``ds4sci data images``. ``model.head`` chooses what is trained:

- ``masked_autoencoder``: the mean squared error of the patches that the encoder does not see. Quality ``score`` is its
  negative on held-out examples, with fixed masks.
- ``segmentation``: the mean over all labelled points of cross-entropy, weighted by frequency as in
  ``ds4sci.tasks.segmentation``. Quality ``miou`` is the mean intersection over union over all held-out points.
- ``classification``: the mean cross-entropy of examples. Quality is ``balanced_accuracy``, the mean over classes of the
  fraction that is found.

A training example is mirrored at random along the axes ``data.flips``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from ds4sci.config.task_module import ParallelUnit
from ds4sci.data.images.recipe import IGNORED, RECIPE_FILE, Recipe
from ds4sci.data.loader import make_rng
from ds4sci.files.atomic_files import replace_text
from ds4sci.metrics.images import iou
from ds4sci.models import vision_transformer
from ds4sci.models.patches import unpatchify
from ds4sci.nn.linear import wide
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayExample, ArrayTask, collate
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.evaluations import Evaluation
from ds4sci.tasks.evaluations.images import image_evaluation
from ds4sci.tasks.image_miniatures import image_miniature
from ds4sci.tasks.task import ASSETS_DIR
from ds4sci.types import IGNORE_INDEX, ArrayBatch, ImageOutput

STATISTICS = 512
"""Training examples of which the first ones give the frequencies of the classes."""
_MASK_STREAM = 4
"""Key of the random stream of the masks of held-out examples."""


class DataConfig(ArrayDataConfig):
    """``[data]``: the dataset, its classes and its symmetries."""

    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, …; none for a masked autoencoder."""
    flips: tuple[int, ...] = ()
    """Spatial axes along which training examples are mirrored at random: −1 is x, −2 is y, −3 is z."""


class LossConfig(BaseModel):
    """``[loss]``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    class_weight_power: float = Field(0.0, ge=0, le=1)
    """p in the weight f^−p of a class with frequency f. 0 = equal weights of all points, 1 = equal of all classes."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: DataConfig
    """Dataset and augmentation."""
    model: vision_transformer.Config = vision_transformer.Config()
    """The network and its head."""
    loss: LossConfig = LossConfig()
    """Weights of the classes."""


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.image_miniatures``."""
    return image_miniature(config, folder)


def parallel_units(config: Config) -> list[ParallelUnit]:
    """Return the attention heads, which Ulysses divides among ranks."""
    vit = vision_transformer.vit_config(config.model, 1, config.model.patch) if config.model.path is None else None
    return [] if vit is None else [ParallelUnit("attention heads", vit.num_attention_heads)]


def asset_overrides(run: Path) -> list[str]:
    """Return the overrides that load ``run`` from its assets, wherever the weights of its encoder came from."""
    folder = run / ASSETS_DIR
    if not (folder / "config.json").is_file():
        return []
    return [f'model.path="{folder}"', "model.load_weights=false", "model.config={}"]


def build(config: Config, *, seed: int, steps: int) -> ImageTask:
    """Return the task with its network, initialised from ``seed``.

    Raises ValueError if there are no data, or if their shape or classes do not fit the settings.
    """
    return ImageTask(config, seed)


class ImageTask(ArrayTask):
    """Vision transformer on images. See ``ds4sci.tasks.Task`` for the methods."""

    model: vision_transformer.VisionTransformer

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config.data, seed)
        self.config, self.head, self.classes = config, config.model.head, config.data.classes
        inputs, targets = self.train[0]
        self._check_shapes(inputs, targets)
        count = 0 if self.head == "masked_autoencoder" else len(self.classes)
        self.model = vision_transformer.build(
            config.model, channels=len(inputs), size=inputs.shape[1:], classes=count, seed=seed
        )
        self.target = {"masked_autoencoder": "score", "segmentation": "miou"}.get(self.head, "balanced_accuracy")
        self.class_weights = self._class_weights() if count else np.ones(0)

    def _check_shapes(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        file = self.train.files[0]
        if inputs.ndim not in (3, 4):
            raise ValueError(f"{file}: examples of shape {list(inputs.shape)}; expected [c, y, x] or [c, z, y, x]")
        if self.head == "masked_autoencoder":
            return
        if len(self.classes) < 2:
            raise ValueError(f"data.classes = {list(self.classes)}: model.head = {self.head!r} needs two or more")
        expected = list(inputs.shape[1:]) if self.head == "segmentation" else []
        if list(targets.shape) != expected or not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(
                f"{file}: targets of shape {list(targets.shape)}, {targets.dtype}; model.head = {self.head!r} needs "
                f"integers of shape {expected}: make the dataset with "
                f"{'--masks' if self.head == 'segmentation' else 'a table that has the column label'}"
            )

    def _class_weights(self) -> np.ndarray:
        """Weights of the classes whose mean over the labelled points is 1. Raises ValueError for an unnamed class."""
        counts = self.train_counts()
        if len(counts) > len(self.classes):
            raise ValueError(
                f"{self.train.files[0]}: class {len(counts) - 1}; data.classes names {len(self.classes)} classes"
            )
        frequency = counts / max(1, counts.sum())
        weights = np.maximum(frequency, 1e-6) ** -self.config.loss.class_weight_power
        return weights / max((frequency * weights).sum(), 1e-12)

    def train_counts(self) -> np.ndarray:
        """Return the points or examples of each class in the first training examples."""
        labels = np.concatenate([np.ravel(target) for _, target in self.train[:STATISTICS]])
        labels = labels[labels != IGNORED] if self.head == "segmentation" else labels
        return np.bincount(labels, minlength=len(self.classes))

    @property
    def group(self) -> SequenceGroup:
        """Ranks that the tokens of an example are sharded across."""
        return self.model.group

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """See ``ds4sci.tasks.SequenceParallel``."""
        self.model.group = group

    def save_assets(self, folder: Path) -> None:
        """Write the configuration of the encoder, and the recipe by which images become examples."""
        self.model.vit.save_pretrained(folder)
        recipe = self.data.folder() / RECIPE_FILE
        if recipe.is_file():
            Recipe.load(recipe.parent).save(folder, classes=list(self.classes))

    def augment(
        self, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ArrayTask.augment``: random mirrors, and the mask of a masked autoencoder."""
        for axis in self.config.data.flips:
            if rng.integers(2):
                inputs = np.flip(inputs, axis)
                targets = np.flip(targets, axis) if self.head == "segmentation" else targets
        return inputs, self._targets(targets, rng)

    def example(self, split: Split, number: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``ArrayTask.example``. The mask depends on split and number only, so that evaluations are comparable."""
        inputs, targets = super().example(split, number)
        return inputs, self._targets(targets, make_rng(0, _MASK_STREAM, int(split == "train"), number))

    def _targets(self, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.head == "segmentation":
            return np.where(targets == IGNORED, IGNORE_INDEX, targets.astype(np.int64))
        if self.head == "classification":
            return targets
        patches = self.model.patches
        hidden = min(max(1, round(self.config.model.mask_ratio * patches)), patches - 1)
        mask = np.zeros(patches, np.int64)
        mask[rng.permutation(patches)[:hidden]] = 1
        return mask

    def weight(self, batch: ArrayBatch) -> float:
        """Return the number of labelled points, or of examples."""
        return float((batch.targets != IGNORE_INDEX).sum()) if self.head == "segmentation" else float(len(batch.ids))

    def work(self, batch: ArrayBatch) -> tuple[float, float]:
        """Return (patches, FLOP of a training step) of this rank's part of ``batch``."""
        examples = len(batch.ids)
        return examples * self.model.patches / self.group.size, self.model.flops(examples) / self.group.size

    def sample_losses(self, output: ImageOutput, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.sample_losses``: this rank's parts. Examples without a label have 0; the terms are those of
        ``loss``."""
        values = wide(output.values)
        if self.head == "masked_autoencoder":
            error = (values - output.targets.to(values.dtype)).square().mean(-1)
            return (error * (output.index > 0)).sum(1) / batch.targets.sum(1), {}
        weight = torch.as_tensor(self.class_weights, dtype=values.dtype, device=values.device)
        each = F.cross_entropy(
            values.flatten(0, 2), output.targets.flatten(), weight=weight, ignore_index=IGNORE_INDEX, reduction="none"
        )
        return each.view(len(batch.ids), -1).sum(1) / self.sample_sizes(batch).clamp(min=1), {}

    def sample_sizes(self, batch: ArrayBatch) -> Tensor:
        """See ``ArrayTask.sample_sizes``: labelled points of each example, 1 for other heads."""
        if self.head == "segmentation":
            return (batch.targets != IGNORE_INDEX).flatten(1).sum(1)
        return torch.ones(len(batch.ids), dtype=torch.int64, device=batch.inputs.device)

    def loss(self, output: ImageOutput, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.loss``: over labelled points, hidden patches or examples."""
        loss, _ = super().loss(output, batch)
        return loss, {"squared_error" if self.head == "masked_autoencoder" else "cross_entropy": loss.detach()}

    @torch.no_grad()
    def sample_errors(self, output: ImageOutput, batch: ArrayBatch) -> tuple[Tensor, Tensor] | None:
        """See ``ArrayTask.sample_errors``: means over the labelled points, on every rank."""
        if self.head == "masked_autoencoder":
            return None
        labelled = output.targets != IGNORE_INDEX
        probabilities = wide(output.values).softmax(-1)
        one_hot = F.one_hot(output.targets.clamp(min=0), len(self.classes))
        columns = ((probabilities - one_hot).norm(dim=-1), probabilities.argmax(-1) == output.targets)
        sums = torch.stack([(x * labelled).flatten(1).sum(1) for x in columns])
        errors, correct = self.group.all_reduce_sum(sums) / self.sample_sizes(batch).clamp(min=1)
        return errors, correct

    def score(self, output: ImageOutput, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return the mean squared error, or the confusion matrix [label][class], of each example, on every rank."""
        if self.head == "masked_autoencoder":
            error = (wide(output.values) - wide(output.targets)).square().mean(-1)
            total = self.group.all_reduce_sum((error * (output.index > 0)).sum(1))
            return [{"squared_error": float(x)} for x in total / batch.targets.sum(1)]
        count = len(self.classes)
        labelled = output.targets != IGNORE_INDEX
        cell = output.targets.clamp(min=0) * count + output.values.argmax(-1)
        counts = torch.stack([torch.bincount(c[m], minlength=count**2) for c, m in zip(cell, labelled, strict=True)])
        found = self.group.all_reduce_sum(counts).view(-1, count, count).cpu().tolist()
        return [{"confusion": matrix} for matrix in found]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return ``score``; or ``miou`` and ``iou_CLASS``; or ``balanced_accuracy`` and ``accuracy``."""
        if not rows:
            raise ValueError("no example was evaluated, so there is no score to report; increase data.valid_examples")
        if self.head == "masked_autoencoder":
            error = float(np.mean([row["squared_error"] for row in rows]))
            return {"score": -error, "squared_error": error}
        return self.class_metrics(np.sum([row["confusion"] for row in rows], axis=0))

    def class_metrics(self, matrix: np.ndarray) -> dict[str, float]:
        """Return the metrics of a confusion matrix [label, class]. Classes without a point or example are left out."""
        matrix = np.asarray(matrix, np.float64)
        if self.head == "classification":
            occurs = matrix.sum(1) > 0
            recall = np.diag(matrix)[occurs] / matrix.sum(1)[occurs]
            return {"balanced_accuracy": float(recall.mean()), "accuracy": float(np.trace(matrix) / matrix.sum())}
        values = dict(zip(self.classes, iou(matrix), strict=True))
        each = {f"iou_{name.replace(' ', '_')}": float(x) for name, x in values.items() if not math.isnan(x)}
        return {"miou": float(np.mean(list(each.values())))} | each

    def evaluations(self) -> dict[str, Evaluation]:
        """See ``Task.evaluations``."""
        return {"held_out": image_evaluation(self)}

    def recipe(self, run: Path) -> Recipe:
        """Return the recipe of ``run``. Raises ValueError if its dataset had none."""
        return Recipe.load(run / ASSETS_DIR)

    @torch.no_grad()
    def logits(self, examples: np.ndarray, device: torch.device) -> np.ndarray:
        """Return logits of examples float32 [k, c, …]: [k, classes, …] of points, or [k, classes] of examples.

        Raises ValueError for a masked autoencoder, which has no classes.
        """
        if self.head == "masked_autoencoder":
            raise ValueError("model.head = 'masked_autoencoder' has no classes to predict; fine-tune it first")
        shape = examples.shape[2:] if self.head == "segmentation" else ()
        found = []
        for first in range(0, len(examples), self.data.evaluation_batch):
            part = examples[first : first + self.data.evaluation_batch]
            batch = collate([ArrayExample(str(i), x, np.zeros(shape, np.int64)) for i, x in enumerate(part)]).to(device)
            values = self.model(batch).values
            if self.head == "segmentation":
                values = unpatchify(
                    values[:, 1:].transpose(-1, -2).flatten(2), self.model.config.patch, self.model.grid
                )
            else:
                values = values.flatten(1)
            found.append(values.float().cpu().numpy())
        return np.concatenate(found)

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        """See ``ds4sci.tasks.Exportable``: the folder of ``vision_transformer.export``, with the recipe."""
        if adapter:
            raise ValueError("a vision transformer has no adapters; export without --adapter")
        vision_transformer.export(self.model, folder, () if self.head == "masked_autoencoder" else self.classes)
        recipe = self.data.folder() / RECIPE_FILE
        if recipe.is_file():
            stored = {"recipe": json.loads(recipe.read_text(encoding="utf-8"))["recipe"]}
            replace_text(folder / RECIPE_FILE, json.dumps(stored, indent=1) + "\n")
