"""Which ranks share a sequence.

The world of W ranks is W / P groups of P neighbours (sequence parallelism): the ranks of a group hold parts of the same
rows, and group number g sees the rows of data-parallel rank g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share each row.

    rank, size          of this process among them; a size of 1 is no sequence parallelism
    data_rank, data_size  of this group among the groups
    handle              torch's process group, or None for a size of 1
    mpu                 what ``deepspeed.initialize(mpu=…)`` takes, or None
    """

    rank: int = 0
    size: int = 1
    data_rank: int = 0
    data_size: int = 1
    handle: Any = None
    mpu: Any = None

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's contiguous part along ``dim``, whose length the group's size must divide: a view."""
        if x.shape[dim] % self.size:
            raise ValueError(f"{x.shape[dim]} tokens cannot be split among {self.size} ranks; pad rows to a multiple")
        return x.chunk(self.size, dim)[self.rank] if self.size > 1 else x

    @torch.no_grad()
    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the group, without gradient; ``x`` itself stays."""
        x = x.detach().clone()
        if self.size > 1:
            dist.all_reduce(x, group=self.handle)
        return x


ALONE = SequenceGroup()
"""One rank, whole rows."""


def sequence_groups(size: int) -> SequenceGroup:
    """Part the world into groups of ``size``; every rank calls it, once, after ``init_distributed``.

    DeepSpeed's own groups are made, so that its ZeRO shards over the whole world. Raises ValueError where ``size`` does
    not divide the number of ranks.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % size:
        raise ValueError(
            f"parallel.sequence = {size} does not divide the {world} rank{'s' if world > 1 else ''} of this run; "
            f"start a multiple of {size} ranks (ds4sci train --ranks {size}) or change parallel.sequence"
        )
    if size == 1:
        return SequenceGroup(data_rank=dist.get_rank() if dist.is_initialized() else 0, data_size=world)
    from deepspeed.runtime.sequence_parallel import parallel_state_sp as mpu

    mpu.initialize_sequence_parallel(size)
    rank = dist.get_rank()
    return SequenceGroup(rank % size, size, rank // size, world // size, mpu.get_sequence_parallel_group(), mpu)
