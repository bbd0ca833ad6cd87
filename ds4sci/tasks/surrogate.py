"""Task: a surrogate of a simulation or experiment, from a few parameters to scalars and a field.

The dataset has several sources with the same variables (``ds4sci.data.surrogate_variables``): a cheap simulation, a
better one, an experiment. A surrogate is trained on one of them. With ``train.weights`` and ``model.freeze`` it is then
partly retrained on another one. The first source sets the units of inputs and outputs for all of them.

The loss is a mean of two mean squared errors in these units, of the scalars and of the cells of the field. Quality is
its root over the held-out examples, ``nrmse``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from ds4sci.data.array_shards import ArrayShards
from ds4sci.data.surrogate_variables import NormalizedShards, Units, Variables
from ds4sci.models import surrogate as network
from ds4sci.nn.linear import wide
from ds4sci.tasks.array_task import ArrayDataConfig, ArrayTask
from ds4sci.tasks.capabilities import Split
from ds4sci.tasks.evaluations import Evaluation
from ds4sci.tasks.evaluations.surrogate import surrogate_evaluation
from ds4sci.tasks.image_miniatures import surrogate_miniature
from ds4sci.types import ArrayBatch


class DataConfig(ArrayDataConfig):
    """``[data]``: the dataset, and the source on which the surrogate is trained."""

    source: str
    """Source of the dataset, such as ``zeldovich`` or ``experiment``: a subfolder that ``variables.json`` lists."""


class LossConfig(BaseModel):
    """``[loss]``: weight of the scalars."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    scalar_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the mean squared error of the scalars; that of the field has the rest. Ignored if the dataset has only
    scalars or only a field."""


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: DataConfig
    """Dataset and source."""
    model: network.Config = network.Config()
    """The network."""
    loss: LossConfig = LossConfig()
    """Weights of the loss."""


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.image_miniatures``."""
    return surrogate_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> Surrogate:
    """Return the task with its network, initialised from ``seed``.

    Raises ValueError, naming the file, if data are missing, damaged, not finite, or not those of ``variables.json``.
    """
    return Surrogate(config, seed)


class Surrogate(ArrayTask):
    """A surrogate. See ``ds4sci.tasks.Task`` for the methods."""

    target = "score"

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.folder = config.data.folder()
        self.variables = Variables.read(self.folder)
        self.units = Units.of(self.variables, self._source(self.variables.sources[0], "train"))
        super().__init__(config.data, seed)
        scalars, cells = len(self.variables.scalars), self.variables.cells
        self.model = network.build(
            config.model, parameters=len(self.variables.parameters), scalars=scalars, cells=cells, seed=seed
        )
        share = config.loss.scalar_weight if scalars and cells else float(scalars > 0)
        self.weights = {"scalars": share, "field": 1 - share}

    def _source(self, source: str, split: Split) -> ArrayShards:
        return self.variables.shards(self.folder, source, split)

    def open_examples(self, split: Split) -> NormalizedShards:
        """See ``ArrayTask.open_examples``: the examples of ``data.source``, in normalized units."""
        return NormalizedShards(self._source(self.config.data.source, split), self.variables, self.units)

    def squared_errors(self, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of each example in normalized units, ``scalars`` [b] and ``field`` [b]."""
        squares = (wide(output) - targets.to(wide(output).dtype)).square()
        count = len(self.variables.scalars)
        parts = {"scalars": squares[:, :count], "field": squares[:, count:]}
        return {name: part.mean(dim=1) for name, part in parts.items() if part.shape[1]}

    def sample_losses(self, output: Tensor, batch: ArrayBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``ArrayTask.sample_losses``: the squared errors of scalars and field, with the weights of ``[loss]``."""
        errors = self.squared_errors(output, batch.targets)
        losses = torch.stack([self.weights[name] * error for name, error in errors.items()]).sum(0)
        return losses, {f"mse_{name}": error.detach().mean() for name, error in errors.items()}

    def score(self, output: Tensor, batch: ArrayBatch) -> list[dict[str, Any]]:
        """Return squared errors in normalized units, and predicted and true scalars in their own units."""
        errors = {
            name: each.double().cpu().tolist() for name, each in self.squared_errors(output, batch.targets).items()
        }
        predicted, true = (
            self.variables.split(self.units.physical(x.double().cpu().numpy()))[0].tolist()
            for x in (output, batch.targets)
        )
        return [
            {f"mse_{name}": each[i] for name, each in errors.items()} | {"predicted": predicted[i], "true": true[i]}
            for i in range(len(batch.ids))
        ]

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Return ``nrmse`` (all outputs), that of scalars and field, the mean absolute error of each scalar in its own
        unit, and ``score`` = −nrmse."""
        if not rows:
            raise ValueError("no example was evaluated, so there is no error to report; increase data.valid_examples")
        parts = {
            name: float(np.mean([row[f"mse_{name}"] for row in rows]))
            for name in self.weights
            if f"mse_{name}" in rows[0]
        }
        nrmse = sum(self.weights[name] * error for name, error in parts.items()) ** 0.5
        found = {"nrmse": nrmse, "score": -nrmse} | {f"nrmse_{name}": error**0.5 for name, error in parts.items()}
        difference = np.array([row["predicted"] for row in rows]) - np.array([row["true"] for row in rows])
        each = np.abs(difference).mean(axis=0)
        return found | {f"mae_{name}": float(x) for name, x in zip(self.variables.scalars, each, strict=True)}

    @torch.no_grad()
    def predict_outputs(self, parameters: np.ndarray, device: torch.device) -> np.ndarray:
        """See ``ds4sci.tasks.ParameterPredictor``."""
        inputs = torch.from_numpy(self.variables.normalized(np.asarray(parameters, np.float64)).astype(np.float32))
        found = [self.model(part.to(device)).double().cpu().numpy() for part in inputs.split(4096)]
        return self.units.physical(np.concatenate(found))

    def held_out_examples(self) -> tuple[np.ndarray, np.ndarray]:
        """See ``ds4sci.tasks.ParameterPredictor``."""
        shards = self._source(self.config.data.source, "valid")
        pairs = shards[: self.data.valid_examples or len(shards)]
        parameters, outputs = (np.stack(arrays).astype(np.float64) for arrays in zip(*pairs, strict=True))
        return parameters, outputs

    def evaluations(self) -> dict[str, Evaluation]:
        """See ``Task.evaluations``."""
        return {"held_out": surrogate_evaluation(self)}

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        """See ``ds4sci.tasks.Exportable``: ``surrogate.pt2`` (``torch.export``: parameters [b, p] in their own units →
        outputs [b, s + cells] in theirs), ``model.safetensors`` (weights and units) and ``variables.json``."""
        if adapter:
            raise ValueError("a surrogate has no adapter weights; export it without --adapter")
        model = Deployed(self.model, self.variables, self.units).eval()
        example = torch.from_numpy(np.stack([self.variables.low, self.variables.high]).astype(np.float32))
        batch = torch.export.Dim("batch")
        torch.export.save(
            torch.export.export(model, (example,), dynamic_shapes=({0: batch},)), folder / "surrogate.pt2"
        )
        save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "model.safetensors")
        self.variables.write(folder)
        (folder / "model.json").write_text(
            json.dumps({"hidden": list(self.config.model.hidden), "activation": "silu"}, indent=1) + "\n",
            encoding="utf-8",
        )


class Deployed(nn.Module):
    """A surrogate in physical units: parameters float32 [b, p] → outputs float32 [b, s + cells]."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, variables: Variables, units: Units) -> None:
        super().__init__()
        self.network = network
        for name, values in (
            ("low", variables.low), ("high", variables.high), ("mean", units.mean), ("std", units.std),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, parameters: Tensor) -> Tensor:
        scaled = 2 * (parameters - self.low) / (self.high - self.low) - 1
        found: Tensor = self.network(scaled) * self.std + self.mean
        return found
