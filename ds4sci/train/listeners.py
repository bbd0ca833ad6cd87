"""The listeners to the stages of a run: its logs and its monitor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig
from ds4sci.data.text_files import resolve_data_path
from ds4sci.machine import page_cache
from ds4sci.mlperf import INSTALL, is_available
from ds4sci.mlperf.log import Layout, MlperfLog
from ds4sci.monitor.rank_monitor import RankMonitor
from ds4sci.train.distributed import DistributedContext
from ds4sci.train.stages import StageListener


def of_rank(config: RunConfig, context: DistributedContext, run: Path, attempt: int = 0) -> list[StageListener]:
    """The listeners of this rank for a run in the folder ``run``. Every rank calls this.

    attempt  number of this start of the run, from 0
    """
    return [*monitor(config, context, run, attempt), *mlperf_log(config, context, run)]


def monitor(config: RunConfig, context: DistributedContext, run: Path, attempt: int) -> list[StageListener]:
    """The monitor of this rank, unless ``train.monitor_seconds`` is 0. One rank of each machine samples the machine."""
    seconds, first = config.train.monitor_seconds, context.local_rank == 0
    return [RankMonitor(run, context.rank, attempt=attempt, seconds=seconds, samples_machine=first)] if seconds else []


def mlperf_log(config: RunConfig, context: DistributedContext, run: Path) -> list[StageListener]:
    """The MLPerf log on rank 0 of a run with ``[benchmark]``. Every rank calls this: each node drops its page cache."""
    if config.benchmark is None:
        return []
    if not context.broadcast(is_available()):
        if context.is_main:
            print(f"No MLPerf log is written: mlperf-logging is not installed ({INSTALL}).", file=sys.stderr)
        return []
    first = context.local_rank == 0
    whole = config.benchmark.submission.drop_caches
    cleared = context.gather(page_cache.drop(data_files(config), whole_machine=whole) if first else None)
    if not context.is_main:
        return []
    nodes = [record for record in cleared if record is not None]
    on_gpus = context.device.type != "cpu"
    batch = deepspeed_json.batch_sizes(config.deepspeed_config(), context.sequence.data_size, config.deepspeed)
    layout = Layout(
        nodes=len(nodes),
        accelerators_per_node=context.world_size // len(nodes) if on_gpus else 0,
        accelerator=gpu_name(context) if on_gpus else "",
        ranks=context.world_size,
        batch=batch,
    )
    return [MlperfLog(config, run, layout, nodes)]


def gpu_name(context: DistributedContext) -> str:
    """Name of this rank's GPU."""
    import torch

    return str(torch.cuda.get_device_name(context.device))


def data_files(config: RunConfig) -> list[Path]:
    """Existing files and folders that the task's sections of the run file name."""
    return [path for path in _paths(config.settings) if path.exists()]


def _paths(section: Any) -> Iterator[Path]:
    """Every path in ``section``; a section with a method ``folder`` names its data by that."""
    if isinstance(section, BaseModel):
        folder = getattr(section, "folder", None)
        if callable(folder):
            yield folder()
        for name in type(section).model_fields:
            yield from _paths(getattr(section, name))
    elif isinstance(section, list | tuple):
        for part in section:
            yield from _paths(part)
    elif isinstance(section, Path):
        yield resolve_data_path(section)
