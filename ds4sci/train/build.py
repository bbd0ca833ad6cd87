"""From a run file to its task, kernels chosen: one way for training, evaluation and prediction."""

from __future__ import annotations

from ds4sci.config.run_file import RunConfig, import_task
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import prefer
from ds4sci.tasks import Task


def build_task(config: RunConfig) -> Task:
    """The task of ``config``, its model initialised from the seed. Raises ValueError for unknown ``[kernels]``."""
    try:
        prefer(config.kernels, KERNELS)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from None
    return import_task(config.task.name).build(config.settings, seed=config.seed, steps=config.train.steps)
