"""The processes of one run, and the small things that they tell each other.

Control messages (flags, rows, barriers) go over a gloo group of their own: they never wait for the GPU, and a rank that
dies breaks the connection at once instead of leaving the others in a collective.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ds4sci.machine.processor import usable_cores
from ds4sci.parallel.groups import ALONE, SequenceGroup, sequence_groups

T = TypeVar("T")

CONTROL_TIMEOUT = timedelta(hours=2)
"""The longest that one rank may lag behind another: an evaluation or a checkpoint of a large model."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among ``world_size``; ``control`` is the gloo group of control messages, ``sequence`` the ranks that
    share this one's rows."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any
    sequence: SequenceGroup = ALONE

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes what belongs to the whole run."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True if it is True on any rank."""
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(x) for x in tensor.tolist())

    def total(self, value: float) -> float:
        """The sum of every rank's ``value``."""
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return float(tensor)

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's ``value`` on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def set_rank_environment() -> None:
    """Make ``python launch/train.py`` a run of one rank, and share the cores out among the ranks.

    DeepSpeed without RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT goes looking for MPI. OMP_NUM_THREADS
    beyond cores / ranks makes CPU ranks fight for cores: measured 11 s instead of 1 s for five steps.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    missing = [k for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise ValueError(
            f"the environment has a part of a launcher's variables but not {', '.join(missing)}; "
            "start with `deepspeed`, `torchrun` or `ds4sci train`, or unset RANK and WORLD_SIZE for a single rank"
        )
    local_size = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // local_size)))


def create_context(device: torch.device, sequence: int = 1) -> DistributedContext:
    """Join the run after ``deepspeed.init_distributed``, ``sequence`` ranks to a row; also gives torch its share of the
    threads. Raises ValueError where ``sequence`` does not divide the ranks."""
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    group = sequence_groups(sequence)
    return DistributedContext(
        dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]), device, control, group
    )


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
