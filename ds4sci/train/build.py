"""From a run file to its task, kernels chosen: one way for training, evaluation and prediction."""

from __future__ import annotations

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import prefer
from ds4sci.tasks import Task


def build_task(config: RunConfig) -> Task:
    """Return the task of ``config``, its model initialised from the seed.

    Raises ValueError for unknown ``[kernels]`` and for a module whose ``build`` returns no ``Task``.
    """
    try:
        prefer(config.kernels, KERNELS)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from None
    task = import_task(config.task.name).build(config.settings, seed=config.seed, steps=config.train.steps)
    if not isinstance(task, Task):
        raise ValueError(
            f"{config.source}: task.name = {config.task.name!r}: build() returned {type(task).__name__}; expected an "
            "instance of ds4sci.tasks.Task"
        )
    return task
