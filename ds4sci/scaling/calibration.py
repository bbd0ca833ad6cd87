"""Short calibration of this machine: compute time of a micro-batch, update of the weights, and α and β of its links.

The ranks run at the same time, as in a training, but without DeepSpeed and without a training step: forward and
backward in a plain loop, torch's AdamW, and all-reduces of several sizes. Nothing of it is fitted to a step time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ds4sci.config.run_file import RunConfig
from ds4sci.scaling.collectives import Link, bytes_sent
from ds4sci.tasks.build import build_task, default_kernels
from ds4sci.train.distributed import free_port

SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of the all-reduces from which α and β are fitted."""
ROUNDS = 7
"""Repetitions of each measurement; the median counts."""


@dataclass(frozen=True)
class Calibration:
    """Rates of this machine with ``ranks`` busy ranks.

    micro_seconds   forward and backward of one micro-batch, data loading included: median over micro-batches and ranks
    update_seconds  clipping, optimizer and average of the weights
    link            α and β of an all-reduce among these ranks; α = 0 on one rank
    noise           standard deviation of the mean micro-batch time between ranks, relative to their mean
    """

    ranks: int
    micro_seconds: float
    update_seconds: float
    link: Link
    noise: float


def fit_link(sizes: Sequence[float], seconds: Sequence[float], ranks: int) -> Link:
    """Fit α and β of ring all-reduces, t = 2 (p − 1) α + sent / β, by least squares of relative errors.

    Negative α becomes 0. Raises ValueError if the times do not grow with the size.
    """
    sent = np.array([bytes_sent("all-reduce", size, ranks) for size in sizes])
    t = np.array(seconds)
    matrix = np.stack([np.full_like(t, 2.0 * (ranks - 1)), sent], 1) / t[:, None]
    (alpha, per_byte), *_ = np.linalg.lstsq(matrix, np.ones_like(t), rcond=None)
    if alpha < 0:
        alpha, per_byte = 0.0, float(np.median(t / sent))
    if per_byte <= 0:
        raise ValueError("the times of all-reduces do not grow with their size; the machine is too busy, repeat it")
    return Link(float(alpha), 1 / float(per_byte))


def calibrate(
    config: Path | str, overrides: Sequence[str], micro: int, ranks: int, threads: int, *, micro_batches: int = 8
) -> Calibration:
    """Measure with ``ranks`` processes of ``threads`` threads each, which load the data of the run file ``config``."""
    port = free_port()
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_rank, str(config), tuple(overrides), micro, rank, ranks, threads, port, micro_batches)
            for rank in range(ranks)
        ]
        found = [job.result() for job in jobs]
    means = [statistics.mean(one[0]) for one in found]
    noise = statistics.pstdev(means) / statistics.mean(means)
    every = [value for one in found for value in one[0]]
    update = statistics.median(one[1] for one in found)
    link = (
        Link(0.0, 1e12)
        if ranks == 1
        else fit_link(SIZES, [max(times) for times in zip(*(o[2] for o in found), strict=True)], ranks)
    )
    return Calibration(ranks, statistics.median(every), update, link, noise)


def _rank(
    file: str, overrides: tuple[str, ...], micro: int, rank: int, ranks: int, threads: int, port: int, count: int
) -> tuple[list[float], float, list[float]]:
    """Seconds of each micro-batch, of an update, and of an all-reduce of each size, on one rank."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    config = RunConfig.load(file, overrides)
    torch.manual_seed(config.seed)
    task = build_task(config)
    model: Any = task.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    stream = task.batches(start_step=0, rank=rank, world_size=ranks, micro_batch_size=micro, accumulation_steps=1)

    def forward_backward() -> None:
        batch = next(stream)
        with default_kernels(config):
            loss, _ = task.loss(model(batch), batch)
            loss.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.01)

    micro_seconds, update_seconds = [], []
    for number in range(count + 2):
        dist.barrier()
        seconds = _timed(forward_backward)
        after = _timed(update)
        optimizer.zero_grad(set_to_none=True)
        if number >= 2:
            micro_seconds.append(seconds)
            update_seconds.append(after)
    if hasattr(stream, "close"):
        stream.close()
    reduced = [_all_reduce(size) for size in SIZES] if ranks > 1 else []
    dist.destroy_process_group()
    return micro_seconds, statistics.median(update_seconds), reduced


def _all_reduce(size: int) -> float:
    x = torch.zeros(size // 4)

    def once() -> float:
        dist.barrier()
        return _timed(lambda: dist.all_reduce(x))

    return statistics.median(once() for _ in range(ROUNDS))


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
