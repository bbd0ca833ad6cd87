"""Tasks: what a run trains, with its data, model, loss, metric and evaluations.

The folder is the registry: ``task.name = "fold"`` in a run file names the module ``ds4sci.tasks.fold``. A dotted name,
such as ``my_lab.tasks.x``, is imported as given, so a task outside this package needs no change in it.

A task module exposes

- ``Config``: a pydantic model whose fields are the TOML sections that the task owns, such as ``model`` and ``data``;
- ``build(config, *, seed, steps) -> Task``;
- optionally ``asset_overrides(run) -> list[str]``: overrides of the configuration by which the run folder ``run`` is
  loaded from the files that ``Task.save_assets`` wrote into it;
- optionally ``parallel_units(config) -> list[ParallelUnit]``: what ``[parallel]`` divides among ranks, such as
  attention heads, for ``ds4sci doctor``;
- optionally ``check_data(config)``: errors of data files that are found in milliseconds, before processes start;
- optionally ``takes_complexes(config) -> bool`` and ``takes_templates(config) -> bool``: what a model that predicts
  structures reads, for ``ds4sci predict``;
- optionally ``miniature(config, folder) -> dict``: the sections of a run file with tiny sizes and with tiny data in
  ``folder``, for ``ds4sci selftest`` (``ds4sci.tasks.miniatures``).

``Task`` states what every task implements and which methods have defaults. ``ds4sci.tasks.capabilities`` lists the
optional protocols behind ``parallel``, ``train.weights``, ``ds4sci predict``, ``embed``, ``export``, ``select score``;
``ds4sci.tasks.evaluations`` describes the evaluations that ``ds4sci eval`` offers.
"""

from __future__ import annotations

from ds4sci.tasks.capabilities import (
    Exportable,
    ImagePredictor,
    ParameterPredictor,
    Pipelined,
    PublishedWeights,
    SampleScoring,
    SequenceEmbedder,
    SequenceEmbedding,
    SequenceParallel,
    StageableData,
    StructurePredictor,
)
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.task import ASSETS_DIR, Task, batch_weight

__all__ = [
    "ASSETS_DIR",
    "Evaluation",
    "EvaluationRequest",
    "EvaluationResult",
    "Exportable",
    "ImagePredictor",
    "ParameterPredictor",
    "Pipelined",
    "PublishedWeights",
    "SampleScoring",
    "SequenceEmbedder",
    "SequenceEmbedding",
    "SequenceParallel",
    "StageableData",
    "StructurePredictor",
    "Task",
    "batch_weight",
]
