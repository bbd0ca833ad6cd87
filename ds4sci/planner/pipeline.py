"""Parameters, FLOPs and activations of the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ds4sci.models.fold import FoldModel
from ds4sci.models.huggingface.parts import supports_checkpointing
from ds4sci.planner.trace import Recorder, conditions, tensors_of
from ds4sci.tasks import Pipelined, Task


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a pipeline.

    blocks      its blocks, counted over the model
    parameters  elements of its parameters
    flops       floating-point operations of the forward pass of a micro-batch; backward takes about twice as many
    saved       bytes saved for the backward pass of a micro-batch
    in_flight   micro-batches whose backward pass is outstanding at most
    received    bytes that it receives from the stage before it, and sends back as gradients, for a micro-batch
    trained     elements of its trained parameters
    """

    blocks: range
    parameters: int
    flops: int
    saved: int
    in_flight: int
    received: int = 0
    trained: int = 0

    @property
    def activations(self) -> int:
        """Bytes saved for all micro-batches in flight."""
        return self.saved * self.in_flight


def plan_stages(task: Task, batch: Any, stages: int, accumulation: int, *, gpu: bool = True) -> list[StageEstimate]:
    """Trace the forward pass of ``batch``, and return the estimates of ``stages`` stages.

    The model of ``task`` has fake weights. Stage k of P holds the activations of at most P − k micro-batches (one
    forward, one backward). Raises ValueError if the model cannot be divided.
    """
    if not isinstance(task, Pipelined):
        raise ValueError(f"{type(task).__name__} cannot be divided into pipeline stages")
    parts = task.pipeline_parts(stages)
    sizes = {name: p.numel() for name, p in task.model.named_parameters()}
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    blocks = _blocks(task.model)
    recorder = Recorder()
    recorder.ignore([*task.model.parameters(), *task.model.buffers(), *tensors_of(batch)])
    if hasattr(batch, "recycling"):  # passes without gradient save nothing
        batch = replace(batch, recycling=0)

    received = [0] * stages
    first = {part.blocks.start: stage for stage, part in enumerate(parts) if stage}

    def begin(stage: int, index: int) -> Callable[..., None]:
        def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
            recorder.stage = stage
            if first.get(index) == stage:
                received[stage] = sum(x.nbytes for x in given if isinstance(x, Tensor) and x.requires_grad)

        return enter

    hooks = [
        blocks[index].register_forward_pre_hook(begin(stage, index))
        for stage, part in enumerate(parts)
        for index in part.blocks
    ]
    task.model.train()
    try:
        with conditions(recorder, gpu), recorder, recorder.record_saved():
            loss, _ = task.loss(task.model(batch), batch)
        saved = [recorder.saved_bytes(stage) for stage in range(stages)]
        del loss  # until here it holds what is saved for backward
    finally:
        for hook in hooks:
            hook.remove()
    return [
        StageEstimate(
            part.blocks, sum(sizes[name] for name in part.parameters), recorder.flops[stage],
            saved[stage], min(stages - stage, accumulation), received[stage],
            sum(sizes[name] for name in part.parameters if name in trained),
        )
        for stage, part in enumerate(parts)
    ]  # fmt: skip


def as_table(estimates: Sequence[StageEstimate]) -> str:
    """Return the estimates as a table."""
    names = ("parameters", "forward GFLOP", "saved GB", "in flight", "activation GB")
    lines = [f"{'stage':<6}{'blocks':<10}" + "".join(f"{name:>16}" for name in names)]
    for stage, one in enumerate(estimates):
        blocks = f"{one.blocks.start}–{one.blocks.stop - 1}"
        values = (
            f"{one.parameters:,}", f"{one.flops / 1e9:,.1f}", f"{one.saved / 2**30:.3f}", str(one.in_flight),
            f"{one.activations / 2**30:.3f}",
        )  # fmt: skip
        lines.append(f"{stage:<6}{blocks:<10}" + "".join(f"{value:>16}" for value in values))
    return "\n".join(lines)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a pipeline divides, in order."""
    if isinstance(model, FoldModel):
        return list(model.evoformer.blocks)
    return [module for module in model.modules() if supports_checkpointing(module)]
