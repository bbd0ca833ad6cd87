"""Task of a run file, and the context in which its ``[kernels]`` apply."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import check_implementations, set_default_implementations
from ds4sci.nn.activation_budget import set_budget
from ds4sci.tasks.task import Task


def build_task(config: RunConfig) -> Task:
    """Return the task of ``config``, its model initialised from the seed. Sets no state of the process.

    Raises ValueError for unknown ``[kernels]`` and for a module whose ``build`` returns no ``Task``.
    """
    try:
        check_implementations(config.kernels, KERNELS)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from None
    task = import_task(config.task.name).build(config.settings, seed=config.seed, steps=config.train.steps)
    if not isinstance(task, Task):
        raise ValueError(
            f"{config.source}: task.name = {config.task.name!r}: build() returned {type(task).__name__}; expected an "
            "instance of ds4sci.tasks.Task"
        )
    if config.train.activation_budget is not None:
        try:
            set_budget(task.model, config.train.activation_budget, divided_by=config.parallel.pipeline)
        except ValueError as error:
            raise ValueError(f"{config.source}: {error}") from None
    return task


def default_kernels(config: RunConfig) -> AbstractContextManager[None]:
    """Context in which operations use the implementations of ``[kernels]`` in ``config``.

    Compute with the task of ``config``, forward and backward, within this context.
    """
    return set_default_implementations(config.kernels, KERNELS)
