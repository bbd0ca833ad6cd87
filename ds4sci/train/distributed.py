"""The distributed context of one process: its rank, device, groups and control messages.

Control messages (flags, evaluation rows, barriers) use a gloo group of their own. They never wait for the GPU, and the
death of a rank breaks the connection at once instead of leaving the others in a collective.
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
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup, create_sequence_group
from ds4sci.parallel.pipeline import SINGLE_STAGE, PipelineGroup, create_pipeline_group

T = TypeVar("T")

CONTROL_TIMEOUT = timedelta(hours=2)
"""Maximum lag between two ranks, during an evaluation or a checkpoint of a large model."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among ``world_size`` processes.

    rank        of this process among all
    world_size  number of processes
    local_rank  of this process on its machine
    device      device that the model is trained on
    control     gloo group of the control messages
    sequence    ranks that share rows with this one (sequence parallelism), and this rank's part of the data
    pipeline    ranks that hold the other stages of this rank's copy of the model (pipeline parallelism)
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any
    sequence: SequenceGroup = SINGLE_RANK
    pipeline: PipelineGroup = SINGLE_STAGE

    @property
    def ranks_per_sample(self) -> int:
        """Number of ranks that compute a micro-batch together."""
        return self.sequence.size * self.pipeline.size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints messages and writes the files of the run."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag reduced by logical or over the ranks."""
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(x) for x in tensor.tolist())

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of ``value`` over the ranks."""
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        return float(tensor)

    def gather(self, value: T) -> list[T]:
        """Return the ``value`` of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: T) -> T:
        """Return the ``value`` of rank 0 on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


def set_rank_environment() -> None:
    """Set the launcher's variables for a single rank if there is no launcher, and divide the cores among the ranks.

    Without RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT DeepSpeed looks for MPI. If OMP_NUM_THREADS
    exceeds cores / ranks, CPU ranks compete for cores: measured 11 s instead of 1 s for five steps.

    Raises ValueError if only some of the variables are set, or if torchrun restarts ranks in a way that hangs.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    missing = [k for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise ValueError(
            f"the environment has some of a launcher's variables but not {', '.join(missing)}; start the run with "
            "`deepspeed`, `torchrun` or `ds4sci train`, or unset RANK and WORLD_SIZE for a single rank"
        )
    if may_be_restarted() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "after a restart by torchrun the ranks would read the addresses of dead ranks and wait; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or start `python -m ds4sci.train.agent` with its flags"
        )
    local_size = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // local_size)))


def create_context(device: torch.device, sequence: int = 1, pipeline: int = 1) -> DistributedContext:
    """Create the process groups, after ``deepspeed.init_distributed``, and set the number of threads of torch on a CPU.

    sequence  ranks that share each row
    pipeline  stages of the model; only one of both is more than 1

    Raises ValueError if one of them does not divide the number of ranks.
    """
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    group = create_sequence_group(sequence)
    stages = create_pipeline_group(pipeline, CONTROL_TIMEOUT)
    rank, world = dist.get_rank(), dist.get_world_size()
    if pipeline > 1:
        copies = world // pipeline
        group = SequenceGroup(data_rank=rank % copies, data_size=copies)
    return DistributedContext(rank, world, int(os.environ["LOCAL_RANK"]), device, control, group, stages)


def may_be_restarted() -> bool:
    """Whether torchelastic's agent starts this rank again after a failure."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def local_ranks() -> range:
    """Return the ranks of this machine, which every launcher numbers consecutively."""
    local_size = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    first = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
    return range(first, first + local_size)


def rank_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment variables that a launcher sets for ``rank`` of ``size`` ranks on this machine.

    port  of rank 0
    """
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
