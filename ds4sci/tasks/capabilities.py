"""Optional protocols of tasks: parallelism, prediction, sequence embedding, published weights and export.

A task has a capability if it has the methods and attributes of the protocol; it need not inherit from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from ds4sci.types import Prediction, Record

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ds4sci.data.alignments.profile import MsaInput
    from ds4sci.data.images.recipe import Recipe
    from ds4sci.data.sequences import SequenceStore
    from ds4sci.data.surrogate_variables import Units, Variables
    from ds4sci.models.weight_fit import FittedWeights
    from ds4sci.parallel.groups import SequenceGroup
    from ds4sci.parallel.pipeline import PipelineStage, StageParts


Split = Literal["train", "valid"]
"""Training or held-out data."""


@runtime_checkable
class StageableData(Protocol):
    """A section ``[data]`` whose dataset can be copied to storage of the node before training: ``train.stage_to``."""

    def folder(self) -> Path:
        """The folder of the dataset, with a ``manifest.json``. Raises ValueError if it does not exist."""

    def moved_to(self, folder: Path) -> StageableData:
        """Return this section with the dataset in ``folder``."""


@runtime_checkable
class SequenceParallel(Protocol):
    """A task that splits each example over several ranks: ``parallel.sequence`` > 1.

    ``Task.shares_random_state`` says whether these ranks draw the same random numbers.
    """

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Split every example over the ranks of ``group``. Called once, before the first batch."""


@runtime_checkable
class Pipelined(Protocol):
    """A task whose model can be divided into stages: ``parallel.pipeline`` > 1.

    Its batches have the method ``to(device)`` and can be pickled. ``loss`` and ``evaluate`` are called on the last
    stage only; a forward pass of ``evaluate`` involves all stages.
    """

    def pipeline_parts(self, stages: int) -> Sequence[StageParts]:
        """Return what each of ``stages`` stages holds. Raises ValueError if the model cannot be divided."""

    def pipeline_stage(self, stage: int, stages: int) -> PipelineStage:
        """Return a stage of the model, and remove all other parameters from ``model``.

        Called once, before the first batch. Raises ValueError if the model cannot be divided.
        """


@runtime_checkable
class SampleScoring(Protocol):
    """A task whose training samples can be scored one by one: ``ds4sci select score``.

    A sample is what ``[data.selection]`` keeps or drops: a chain, a record, an example.
    """

    model: nn.Module

    def sample_names(self) -> list[str]:
        """Return the names of all training samples, selected or not, in order."""

    def sample_batches(self, split: Split = "train") -> Iterator[tuple[int, Any]]:
        """Yield (number of the sample, a batch of it alone) for all training samples, or all held-out ones.

        Batches are those of an evaluation: without random crops, shifts or symmetries. A long sample may come in
        several batches, which follow one another.
        """

    def sample_error(self, output: Any, batch: Any) -> Tensor | None:
        """Return the mean distance of predicted probabilities from one-hot labels (EL2N), over what ``Task.weight``
        counts; None for a task that predicts no classes."""


@runtime_checkable
class StructurePredictor(Protocol):
    """A task that predicts structures from sequences: ``ds4sci predict``.

    The functions ``takes_complexes`` and ``takes_templates`` of the task's module return whether the model takes
    complexes (``Record.chain_ids``) and templates (``ds4sci.config.task_module``).
    """

    model: nn.Module

    @property
    def msa_input(self) -> MsaInput:
        """Input that the model takes: ``sequence``, ``profile`` or ``msa``."""

    def featurize(self, record: Record) -> Any:
        """Return the features of ``record`` for inference: full length, deterministic."""

    def predict(self, features: Sequence[Any], device: torch.device) -> list[Prediction]:
        """Predict chains as one batch, in evaluation mode, without gradients."""

    def prediction_bytes(self, record: Record) -> int:
        """Estimate the memory in bytes of predicting ``record`` as a batch of one; 0 where there is no estimate."""


@runtime_checkable
class ImagePredictor(Protocol):
    """A task that segments or classifies images: ``ds4sci predict --images``."""

    classes: tuple[str, ...]
    """Names of the classes."""

    def recipe(self, run: Path) -> Recipe:
        """Return how an image becomes examples, from the assets of ``run``. Raises ValueError if there are none."""

    def logits(self, examples: np.ndarray, device: torch.device) -> np.ndarray:
        """Return logits of examples float32 [k, c, …]: [k, classes, …] of points, or [k, classes] of examples."""


@dataclass(frozen=True)
class SequenceEmbedding:
    """Last hidden states of one sequence, without special tokens.

    hidden   fp32 [tokens, c] on the CPU; empty where all tokens are unknown
    start    int64 [tokens], first residue of each token, 0-based
    size     int64 [tokens], number of residues of each token
    unknown  bool [tokens], True = the token is ``<unk>``
    """

    hidden: Tensor
    start: np.ndarray
    size: np.ndarray
    unknown: np.ndarray


@runtime_checkable
class SequenceEmbedder(Protocol):
    """A task that embeds sequences: ``ds4sci embed``. The rows of long sequences are split over ranks."""

    model: nn.Module

    @property
    def skips_unreadable(self) -> bool:
        """Whether records without a known token are skipped; otherwise they are an error."""

    def set_parallel_groups(self, group: SequenceGroup) -> None:
        """Split every sequence over the ranks of ``group``."""

    def open_sequences(self, path: Path, folder: Path) -> SequenceStore:
        """Open the sequences in ``path``: a store, or a file that is indexed in ``folder``."""

    def embed(self, residues: np.ndarray, name: str) -> SequenceEmbedding:
        """Embed ``residues`` (uint8 letters [n]) as one document; the result is complete on every rank."""


@runtime_checkable
class ParameterPredictor(Protocol):
    """A task that predicts scalars and a field from parameters: ``ds4sci predict --parameters``, and ensembles."""

    model: nn.Module
    variables: Variables
    units: Units
    weights: Mapping[str, float]
    """Weights of the mean squared errors of ``scalars`` and ``field`` in the loss."""

    def predict_outputs(self, parameters: np.ndarray, device: torch.device) -> np.ndarray:
        """Return outputs [m, t], float64, of parameters [m, p]; both in their own units."""

    def held_out_examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Return parameters [m, p] and outputs [m, t] of the held-out examples, float64, in their own units."""


@runtime_checkable
class PublishedWeights(Protocol):
    """A task whose model has published parameters in files of other programs: ``train.weights``."""

    model: nn.Module

    def read_weights(self, file: Path, *, skip: Sequence[str], new: Sequence[str]) -> FittedWeights:
        """Return the tensors of ``file`` under the names of the model, and which of them the model takes.

        skip, new  ``train.weights_skip`` and ``train.weights_new``, see ``ds4sci.models.weight_fit.fit_weights``

        Raises ValueError for a file that cannot be read safely or does not fit the model.
        """


@runtime_checkable
class Exportable(Protocol):
    """A task whose trained model has a form that other programs read: ``ds4sci export``."""

    def export(self, folder: Path, *, adapter: bool, started_with: Mapping[str, Any]) -> None:
        """Write the model into the empty folder ``folder``.

        adapter       write only the adapter weights. Raises ValueError if the model has none
        started_with  the resolved configuration with which the run was started, as plain values
        """
