"""Process groups of sequence parallelism: the ranks that share each example.

A world of W ranks is divided into W / P groups of P consecutive ranks. The ranks of a group hold parts of the same
rows; group g reads the rows of data-parallel rank g.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share each row.

    rank, size            rank of this process in the group and size of the group; 1 means no sequence parallelism
    data_rank, data_size  index of this group and number of groups
    handle                torch's process group, or None for size 1
    mpu                   argument ``mpu`` of ``deepspeed.initialize``, or None
    """

    rank: int = 0
    size: int = 1
    data_rank: int = 0
    data_size: int = 1
    handle: Any = None
    mpu: Any = None

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return this rank's contiguous part of ``x`` along ``dim``, as a view.

        Raises ValueError if the size of the group does not divide the length.
        """
        if x.shape[dim] % self.size:
            raise ValueError(f"{x.shape[dim]} tokens cannot be divided among {self.size} ranks; pad rows to a multiple")
        return x.chunk(self.size, dim)[self.rank] if self.size > 1 else x

    @torch.no_grad()
    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the group, without gradient. ``x`` is not modified."""
        x = x.detach().clone()
        if self.size > 1:
            dist.all_reduce(x, group=self.handle)
        return x


SINGLE_RANK = SequenceGroup()
"""A single rank that holds whole rows: no sequence parallelism."""


def world_size_divided_by(key: str, size: int) -> int:
    """Return the number of ranks. Raises ValueError if ``size``, the value of ``parallel.KEY``, does not divide it."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % size:
        raise ValueError(
            f"parallel.{key} = {size} does not divide the {world} rank{'s' if world > 1 else ''} of this run; "
            f"start a multiple of {size} ranks (ds4sci train --ranks {size}) or change parallel.{key}"
        )
    return world


def create_sequence_group(size: int) -> SequenceGroup:
    """Divide the world into groups of ``size`` and return this rank's group.

    Every rank calls this once, after ``init_distributed``. The groups are DeepSpeed's own, so that ZeRO shards over the
    whole world. Raises ValueError if ``size`` does not divide the number of ranks.
    """
    world = world_size_divided_by("sequence", size)
    if size == 1:
        return SequenceGroup(data_rank=dist.get_rank() if dist.is_initialized() else 0, data_size=world)
    from deepspeed.runtime.sequence_parallel import parallel_state_sp as mpu

    mpu.initialize_sequence_parallel(size)
    rank = dist.get_rank()
    return SequenceGroup(rank % size, size, rank // size, world // size, mpu.get_sequence_parallel_group(), mpu)


@contextmanager
def fake_group(size: int) -> Iterator[SequenceGroup]:
    """Context manager of a group of ``size`` ranks, of which this process is the last and the others do not exist.

    The last rank has the most heads and rows where these do not divide evenly. Raises RuntimeError if torch's process
    group of this process is initialised.
    """
    if size == 1:
        yield SINGLE_RANK
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("a trace needs a process without a process group")
    dist.init_process_group("fake", rank=size - 1, world_size=size, store=FakeStore())
    try:
        yield SequenceGroup(rank=size - 1, size=size, handle=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
