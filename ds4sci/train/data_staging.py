"""Staging of a run's dataset on its nodes before training: ``train.stage_to``."""

from __future__ import annotations

from dataclasses import replace

from ds4sci.config.run_file import RunConfig
from ds4sci.datasets import staging
from ds4sci.tasks import StageableData
from ds4sci.train.distributed import DistributedContext, local_ranks
from ds4sci.train.stages import Stages


def stage_data(config: RunConfig, context: DistributedContext, stages: Stages) -> RunConfig:
    """Copy the dataset of ``config`` to ``train.stage_to``; return the config that reads the copy. Every rank calls it.

    Without ``train.stage_to`` this returns ``config``. Raises ValueError, on every rank, if the task's data cannot be
    staged, a file is missing or damaged, or there is too little space.
    """
    if config.train.stage_to is None:
        return config
    data = getattr(config.settings, "data", None)
    if not isinstance(data, StageableData):
        raise ValueError(
            f"{config.source}: train.stage_to = {str(config.train.stage_to)!r}, but the data of the task "
            f"{config.task.name} cannot be staged (it is not a dataset of arrays); remove the key"
        )
    ranks = local_ranks()
    with stages.stage("staging") as end:
        staged = staging.stage(
            data.folder(), config.train.stage_to, local_rank=context.rank - ranks.start, local_size=len(ranks),
            gather=context.gather,
        )  # fmt: skip
        end.update(
            files=staged.files,
            copied_bytes=staged.copied_bytes,
            kept_bytes=staged.kept_bytes,
            refused=[*staged.refused],
        )
    for text in staged.refused:
        print(f"rank {context.rank}: refused: {text}; copied again", flush=True)
    copied = sum(int(text) for text in context.gather(str(staged.copied_bytes)))
    if context.is_main:
        print(f"Staged in {staged.folder}: copied {copied / 1e6:,.1f} MB in {staged.seconds:.1f} s", flush=True)
    return replace(config, settings=config.settings.model_copy(update={"data": data.moved_to(staged.folder)}))
