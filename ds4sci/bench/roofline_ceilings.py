"""Ceilings of a machine, and four cases that each should reach one of them.

Ceiling and case take turns, A B A B, so that another program on the machine slows down both. A ceiling is the best of
its rounds, and so is the time of a case.

- compute: torch's product of two square matrices; the case is a linear layer of another shape;
- memory: STREAM's triad ``a = b + s·c``; the case is a triad of another size;
- disk: a cold sequential read with ``readinto``; the case reads another file with ``numpy.fromfile``;
- network: an all-reduce between two ranks of this machine over loopback; the case is one of another size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ds4sci.bench.machine_limits import EMULATED_RATIO
from ds4sci.bench.roofline_counts import DiskReads, StepCounter, Work, cache_bytes
from ds4sci.kernels import machine_peak
from ds4sci.machine import page_cache
from ds4sci.train.distributed import free_port

LIMITS = ("compute", "memory", "disk", "network")


@dataclass
class Ceilings:
    """Rates that this machine reaches.

    flops    dtype name → FLOP/s
    memory, disk, network  bytes/s; ``disk`` is None where the files are in memory, ``network`` if it was not measured
    """

    flops: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    disk: float | None = None
    network: float | None = None

    def seconds(self, work: Work) -> dict[str, float]:
        """Lower bound of the time of ``work`` by each of ``LIMITS``. Rates that were not measured give 0."""
        slowest = min(self.flops.values(), default=float("inf"))
        return {
            "compute": sum(count / self.flops.get(dtype, slowest) for dtype, count in work.flops.items()),
            "memory": work.memory / self.memory if self.memory else 0.0,
            "disk": work.disk / self.disk if self.disk else 0.0,
            "network": work.network / self.network if self.network else 0.0,
        }


def limiter(seconds: dict[str, float]) -> tuple[str, float]:
    """The largest of the lower bounds, and its name."""
    name = max(seconds, key=lambda key: seconds[key])
    return name, seconds[name]


@dataclass
class Case:
    """A measured case: its work, and the best of its times in seconds."""

    name: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """Sizes of ceilings and cases: matrices (rows), triads and files and messages (bytes), number of rounds."""

    gemm: int = 1536
    gemm_case: tuple[int, int, int] = (2048, 1024, 1536)
    triad: int = 128 << 20
    triad_case: int = 192 << 20
    file: int = 256 << 20
    file_case: int = 192 << 20
    message: int = 64 << 20
    message_case: int = 40 << 20
    rounds: int = 7


def full_sizes() -> Sizes:
    """Sizes of a measurement: an array of the triad is as large as the largest cache, so that three never fit in it."""
    triad = max(Sizes.triad, cache_bytes(torch.device("cpu")))
    return Sizes(triad=triad, triad_case=triad * 3 // 2)


QUICK = Sizes(128, (192, 64, 128), 1 << 20, 2 << 20, 1 << 20, 2 << 20, 1 << 20, 2 << 20, 2)


def measure(folder: Path, sizes: Sizes, *, ranks: bool = True) -> tuple[Ceilings, list[Case]]:
    """Measure ceilings and cases on the CPU. ``folder``: place of the files; without ``ranks`` no network."""
    ceilings, cases = Ceilings(), []
    ceilings.flops["float32"], case = _gemm(sizes, torch.float32)
    cases.append(case)
    ceilings.flops["bfloat16"] = _bf16_rate(sizes, ceilings.flops["float32"])
    ceilings.memory, case = _triad(sizes)
    cases.append(case)
    ceilings.disk, disk_case = _cold_read(folder, sizes)
    cases += [disk_case] if disk_case is not None else []
    if ranks:
        ceilings.network, case = _all_reduce(sizes)
        cases.append(case)
    return ceilings, cases


def _alternate(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """Best of the seconds that each action returns, with the actions in turn."""
    times = [[action() for action in actions] for _ in range(rounds)]
    return [min(own) for own in zip(*times, strict=True)]


def _timed(action: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    action()  # warms up
    return run


def _work(action: Callable[[], Any]) -> Work:
    """Work of one of many calls: the modelled cache holds what the call before left, to be written back first."""
    with StepCounter(cache_bytes(torch.device("cpu"))) as counter:
        action()
        counter.reset()
        action()
    return counter.work()


def _gemm(sizes: Sizes, dtype: torch.dtype) -> tuple[float, Case]:
    n, (rows, inner, columns) = sizes.gemm, sizes.gemm_case
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)

    def linear() -> Any:
        return torch.nn.functional.linear(x, weight)

    best, case = _alternate(sizes.rounds, _timed(lambda: torch.mm(a, b)), _timed(linear))
    return 2 * n**3 / best, Case("GEMM", _work(linear), case)


def _bf16_rate(sizes: Sizes, fp32: float) -> float:
    """FLOP/s of bf16 products; those of small ones where torch emulates them, as large ones would take minutes."""
    small = machine_peak.gemm_rate(torch.bfloat16, 128)
    return small if small < EMULATED_RATIO * fp32 else _gemm(sizes, torch.bfloat16)[0]


def _triad(sizes: Sizes) -> tuple[float, Case]:
    def triad(size: int) -> Callable[[], Any]:
        a, b, c = (torch.ones(size // 4) for _ in range(3))
        return lambda: torch.add(b, c, alpha=1.5, out=a)

    one, other = triad(sizes.triad), triad(sizes.triad_case)
    best, case = _alternate(sizes.rounds, _timed(one), _timed(other))
    return 3 * sizes.triad / best, Case("triad", _work(other), case)


def _cold_read(folder: Path, sizes: Sizes) -> tuple[float | None, Case | None]:
    """Rate of the disk, and the case; None if the system counts no reads, because ``folder`` is in memory."""
    files = [folder / "roofline_ceiling.bin", folder / "roofline_case.bin"]
    buffer = bytearray(8 << 20)
    counted: list[int] = []

    def read_into() -> float:
        page_cache.drop(files[:1])
        began = time.perf_counter()
        with files[0].open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
        return time.perf_counter() - began

    def from_file() -> float:
        page_cache.drop(files[1:])
        disk = DiskReads()
        began = time.perf_counter()
        np.fromfile(files[1], dtype=np.uint8)
        seconds = time.perf_counter() - began
        counted.append(disk.read() or 0)
        return seconds

    try:
        block = np.random.default_rng(0).bytes(1 << 20)
        for file, size in zip(files, (sizes.file, sizes.file_case), strict=True):
            with file.open("wb") as handle:
                for _ in range(size >> 20):
                    handle.write(block)
                handle.flush()
                os.fsync(handle.fileno())
        best, case = _alternate(sizes.rounds, read_into, from_file)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    read = sorted(counted)[len(counted) // 2]
    if read < 0.5 * sizes.file_case:
        return None, None
    return sizes.file / best, Case("cold read", Work(disk=read), case)


def _all_reduce(sizes: Sizes) -> tuple[float, Case]:
    port = free_port()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        (best, case, sent), _ = (
            one.result() for one in [pool.submit(_rank_of_all_reduce, rank, port, sizes) for rank in range(2)]
        )
    return sent[0] / best, Case("all-reduce", Work(network=sent[1]), case)


def _rank_of_all_reduce(rank: int, port: int, sizes: Sizes) -> tuple[float, float, tuple[int, int]]:
    """Best times of the two all-reduces on this rank, and the bytes that it sends in each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def all_reduce(size: int) -> tuple[Callable[[], float], int]:
        x = torch.zeros(size // 4)
        with StepCounter(0) as counter:
            dist.all_reduce(x)

        def run() -> float:
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(x)
            return time.perf_counter() - began

        return run, counter.work().network

    (one, sent), (other, sent_case) = all_reduce(sizes.message), all_reduce(sizes.message_case)
    best, case = _alternate(sizes.rounds, one, other)
    dist.destroy_process_group()
    return best, case, (sent, sent_case)
