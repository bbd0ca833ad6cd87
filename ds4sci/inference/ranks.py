"""Processes of this machine that share work on a trained run, joined as the ranks of a training are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar

import torch.distributed as dist

from ds4sci.machine.processor import usable_cores
from ds4sci.train.distributed import free_port, rank_variables

Result = TypeVar("Result")


def run_ranks(work: Callable[..., Result], ranks: int, *arguments: Any, sequence: int = 1) -> list[Result]:
    """Call ``work(context, *arguments)`` on each of ``ranks`` ranks; return their results in order.

    work      function of a module; ``context`` is a ``ds4sci.train.distributed.DistributedContext``
    sequence  ranks that share each row

    Arguments and results are pickled. Raises what the first rank that fails raises.
    """
    port = free_port()
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_rank, rank, port, ranks, sequence, work, arguments) for rank in range(ranks)]
        finished, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        for one in finished:  # the first failure: it makes the others fail, who wait for that rank
            one.result()
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
    finally:
        dist.destroy_process_group()
