"""Processes of this machine that share work on a trained run, joined as the ranks of a training are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch.distributed as dist

from ds4sci.machine.processor import usable_cores
from ds4sci.train.distributed import free_port, rank_variables

Result = TypeVar("Result")
_TIME = "failed_at"
"""Attribute of an exception of a rank: when it was raised, by the clock that all processes share."""


def run_ranks(work: Callable[..., Result], ranks: int, *arguments: Any, sequence: int = 1) -> list[Result]:
    """Call ``work(context, *arguments)`` on each of ``ranks`` ranks; return their results in order.

    work      function of a module; ``context`` is a ``ds4sci.train.distributed.DistributedContext``
    sequence  ranks that share each row

    Arguments and results are pickled. Raises what the first rank that fails raises.
    """
    port = free_port()
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_rank, rank, port, ranks, sequence, work, arguments) for rank in range(ranks)]
        errors = [error for one in waiting if (error := one.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: getattr(error, _TIME, float("inf")))
        return [one.result() for one in waiting]


def _rank(
    rank: int, port: int, ranks: int, sequence: int, work: Callable[..., Result], arguments: tuple[Any, ...]
) -> Result:
    """Entry point of one process."""
    from ds4sci.train import engine

    engine.silence_deepspeed()
    os.environ.update(rank_variables(rank, ranks, port))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    context = engine.init_distributed({}, sequence)
    try:
        return work(context, *arguments)
    except Exception as error:  # ranks that wait for this one fail too, later
        setattr(error, _TIME, time.monotonic())
        raise
    finally:
        dist.destroy_process_group()
