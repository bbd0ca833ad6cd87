"""Pipeline parallelism: the ranks that hold consecutive stages of one model, stages, and transfers between them.

A world of W ranks holds W / P copies of the model, each divided into P stages. Rank r holds stage r // (W / P) of copy
r mod (W / P), as in DeepSpeed's ``PipeDataParallelTopology``. All stages of a copy read the same micro-batches, so that
only hidden states travel between them: one tensor, because DeepSpeed's engine runs a backward pass through the whole
stage for every floating-point tensor that it receives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ds4sci.parallel.groups import world_size_divided_by


@dataclass(frozen=True)
class PipelineGroup:
    """The ranks that hold the stages of one copy of the model.

    stage, size  stage of this rank and number of stages; size 1 means no pipeline
    ranks        global rank of each stage
    control      gloo group of these ranks for control messages, or None for size 1
    """

    stage: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this rank holds the first stage."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank holds the last stage, which computes outputs and losses."""
        return self.stage == self.size - 1


SINGLE_STAGE = PipelineGroup()
"""A rank that holds the whole model."""


def create_pipeline_group(size: int, timeout: timedelta) -> PipelineGroup:
    """Divide the world into pipelines of ``size`` stages and return this rank's. Every rank calls this once.

    Raises ValueError if ``size`` does not divide the number of ranks.
    """
    world = world_size_divided_by("pipeline", size)
    if size == 1:
        return SINGLE_STAGE
    copies, found = world // size, SINGLE_STAGE
    for copy in range(copies):
        ranks = tuple(stage * copies + copy for stage in range(size))
        control = dist.new_group(list(ranks), backend="gloo", timeout=timeout)
        if dist.get_rank() in ranks:
            found = PipelineGroup(ranks.index(dist.get_rank()), size, ranks, control)
    return found


@dataclass(frozen=True)
class StageParts:
    """Parts of a model that one stage holds.

    blocks      indices of its blocks, counted over the model
    parameters  names of its parameters in the unsplit model; tied weights are in the first and in the last stage
    """

    blocks: range
    parameters: tuple[str, ...]


class PipelineStage(nn.Module, ABC):
    """One stage of a model: some of its blocks, on the first stage its inputs, and on the last one its outputs.

    The stage of the unsplit model runs ``passes(batch)`` forward passes without gradient (recycling), each of which
    starts with what ``recycle`` returned for the one before, and then the pass whose output is used.

    model  the task's model without the modules of other stages
    parts  what each stage of the model holds
    tied   parameters of this stage that another stage holds as well; their gradients are summed
    """

    model: nn.Module
    parts: Sequence[StageParts]
    tied: Sequence[nn.Parameter] = ()

    @abstractmethod
    def forward(self, batch: Any, states: Tensor | None, recycled: Tensor | None) -> Any:
        """Return the states for the next stage, one floating-point tensor; on the last stage, the model's output.

        states    states from the stage before; None on the first stage
        recycled  on the first stage, what ``recycle`` returned for the pass before; None in the first pass
        """

    @abstractmethod
    def stage_parameters(self) -> dict[str, nn.Parameter]:
        """Return this stage's parameters by their names in the unsplit model."""

    def passes(self, batch: Any) -> int:
        """Return the number of passes without gradient before the pass whose output is used."""
        return 0

    def batch_of_pass(self, batch: Any, number: int) -> Any:
        """Return ``batch`` with the inputs of the pass ``number``, from 0, of the passes without gradient."""
        return batch

    def recycle(self, output: Any, batch: Any) -> Tensor:
        """Return what the next pass needs of ``output``, as one tensor. Called on the last stage."""
        raise NotImplementedError


def split_evenly(costs: Sequence[int], stages: int) -> list[range]:
    """Divide blocks into ``stages`` runs of consecutive blocks whose largest sum of costs is smallest.

    Raises ValueError if there are fewer blocks than stages.
    """
    if len(costs) < stages:
        raise ValueError(
            f"parallel.pipeline = {stages} stages, but the model has {len(costs)} block{'s' * (len(costs) != 1)}; "
            f"reduce parallel.pipeline to at most {len(costs)}"
        )
    # best[k][i]: smallest possible maximum of the first i blocks in k non-empty runs
    ends = range(len(costs) + 1)
    before = [sum(costs[:i]) for i in ends]
    best: list[list[tuple[float, int]]] = [[(0.0, 0) if i == 0 else (float("inf"), 0) for i in ends]]
    for _ in range(stages):
        row = [(float("inf"), 0)]
        for i in ends[1:]:
            row.append(min((max(best[-1][j][0], before[i] - before[j]), j) for j in range(i)))
        best.append(row)
    runs, stop = [], len(costs)
    for k in range(stages, 0, -1):
        start = best[k][stop][1]
        runs.append(range(start, stop))
        stop = start
    return runs[::-1]


def send(x: Tensor, rank: int) -> None:
    """Send ``x`` to ``rank``, which calls ``receive``; shape and dtype are sent too."""
    x = x.detach().contiguous()
    header = torch.tensor([_DTYPES.index(x.dtype), *x.shape, *[-1] * (_MAX_DIMS - x.ndim)], device=x.device)
    dist.send(header, rank)
    dist.send(x, rank)


def receive(rank: int, device: torch.device) -> Tensor:
    """Return the tensor that ``rank`` sends with ``send``."""
    header = torch.empty(1 + _MAX_DIMS, dtype=torch.int64, device=device)
    dist.recv(header, rank)
    dtype, *shape = header.tolist()
    x = torch.empty([n for n in shape if n >= 0], dtype=_DTYPES[dtype], device=device)
    dist.recv(x, rank)
    return x


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAX_DIMS = 6
