"""DeepSpeed's pipeline engine as the training loop uses it: one rank's stage of the model.

DeepSpeed runs forward and backward of a step's micro-batches by its 1F1B schedule. Every stage fetches the same
micro-batches as the others and receives only states. Passes without gradient, for recycling and evaluation, are chains
of point-to-point transfers outside that schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ds4sci.config import deepspeed_json
from ds4sci.parallel import pipeline
from ds4sci.parallel.pipeline import PipelineGroup, PipelineStage
from ds4sci.tasks import Task
from ds4sci.train.distributed import DistributedContext
from ds4sci.train.engine import Engine, StepResult, to_floats


class PipelineEngine(Engine):
    """An engine whose model is one stage of a pipeline. Losses exist on the last stage only."""

    def __init__(self, stage: PipelineStage, json_file: Path, context: DistributedContext) -> None:
        """Raises ValueError as ``Engine`` does, and for settings that do not work with pipeline stages."""
        self.stage, self.group = stage, context.pipeline
        _check(deepspeed_json.read(json_file), json_file, stage, context.pipeline)
        super().__init__(stage, json_file, context)
        self._factor *= self.batch[2]  # DeepSpeed divides losses by the number of micro-batches

    def _module_to_wrap(self, model: nn.Module, context: DistributedContext) -> nn.Module:
        self._step = _ScheduledStage(model, receives=not self.group.is_first)
        return _pipeline_module(self._step, self.stage, context)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.stage.stage_parameters().items())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        model = self.stage.model
        persistent = model.state_dict(keep_vars=True).keys()
        return ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)

    def run_step(
        self, task: Task, parts: Sequence[tuple[Any, float]], seed_micro_batch: Callable[..., None]
    ) -> StepResult:
        batches, device = [batch for batch, _ in parts], self.context.device
        losses: list[dict[str, float]] = []
        finite: list[bool] = []

        def forward(number: int, states: Tensor | None) -> Tensor:
            seed_micro_batch(number)
            batch = batches[number].to(device)
            out = self.stage(batch, states, recycled[number])
            recycled[number] = None
            if not self.group.is_last:
                return out
            loss, terms = task.loss(out, batch)
            losses.append(to_floats(loss, terms))
            finite.append(bool(torch.isfinite(loss.detach())))
            # NaN gradients make every rank skip the step, see Engine.backward
            return loss * (parts[number][1] * self._factor if finite[-1] else float("nan"))

        recycled = self._recycle(batches, seed_micro_batch)
        self._step.compute, self._step.number = forward, 0
        self.deepspeed.train_batch(iter([(torch.zeros(1), torch.zeros(1))] * len(parts)))
        self._step.compute = None
        norm = self.deepspeed.get_global_grad_norm()
        self.grad_norm = None if norm is None else float(norm)
        return StepResult(losses, finite, bool(self.deepspeed.was_step_applied()))

    def evaluate(self, task: Task, before_forward: Callable[[], None]) -> list[dict[str, Any]]:
        """Return the rows of ``task.evaluate`` on the last stage; the other stages compute their part of every forward
        pass and return no rows."""
        model = _ForwardChain(self, before_forward).eval()
        if not self.group.is_last:
            while (batch := self._share(None)) is not None:
                model.compute(batch)
            return []
        group = self.context.sequence
        rows = task.evaluate(model, rank=group.data_rank, world_size=group.data_size, device=self.context.device)
        self._share(None)
        return rows

    def _share(self, batch: Any) -> Any:
        """Return the ``batch`` of the last stage on every stage, on the CPU. None ends an evaluation."""
        box = [batch]
        dist.broadcast_object_list(box, src=self.group.ranks[-1], group=self.group.control)
        return box[0]

    @torch.no_grad()
    def _recycle(self, batches: Sequence[Any], seed: Callable[..., None] | None) -> list[Tensor | None]:
        """Run the passes of ``batches`` without gradient. Returns the input of the last pass for each on the first
        stage."""
        recycled: list[Tensor | None] = [None] * len(batches)
        rounds = [self.stage.passes(batch) for batch in batches]
        for number in range(max(rounds, default=0)):
            running = [i for i, passes in enumerate(rounds) if number < passes]
            found = []
            for i in running:
                if seed is not None:
                    seed(i, 1 + number)
                batch = batches[i].to(self.context.device)
                out = self.forward_pass(self.stage.batch_of_pass(batch, number), recycled[i])
                if self.group.is_last:
                    found.append(self.stage.recycle(out, batch))
            # after all forward passes, so that no stage waits for the first one in between
            for place, i in enumerate(running):
                if self.group.is_last:
                    pipeline.send(found[place], self.group.ranks[0])
                elif self.group.is_first:
                    recycled[i] = pipeline.receive(self.group.ranks[-1], self.context.device)
        return recycled

    @torch.no_grad()
    def forward_pass(self, batch: Any, recycled: Tensor | None) -> Any:
        """This stage's part of one pass without gradient. Returns the output on the last stage, otherwise None."""
        from deepspeed.runtime.torch_autocast import autocast_if_enabled

        group, states = self.group, None
        if not group.is_first:
            states = pipeline.receive(group.ranks[group.stage - 1], self.context.device)
        with autocast_if_enabled(self.deepspeed):
            out = self.stage(batch, states, recycled)
        if group.is_last:
            return out
        pipeline.send(out, group.ranks[group.stage + 1])
        return None


class _ForwardChain(nn.Module):
    """The whole model as ``Task.evaluate`` calls it on the last stage; ``compute`` is the other stages' part."""

    def __init__(self, engine: PipelineEngine, before_forward: Callable[[], None]) -> None:
        super().__init__()
        self._engine, self._before_forward = engine, before_forward

    def forward(self, batch: Any) -> Any:
        return self.compute(self._engine._share(batch.to("cpu")))

    def compute(self, batch: Any) -> Any:
        self._before_forward()
        batch = batch.to(self._engine.context.device)
        (recycled,) = self._engine._recycle([batch], None)
        return self._engine.forward_pass(batch, recycled)


class _ScheduledStage(nn.Module):
    """The stage as a layer that DeepSpeed's schedule calls with what it has received, once for each micro-batch."""

    compute: Callable[[int, Tensor | None], Tensor] | None = None
    """(number of the micro-batch, states) → states or loss; None between steps."""
    number: int = 0
    """Number of the next micro-batch."""

    def __init__(self, stage: nn.Module, *, receives: bool) -> None:
        super().__init__()
        self.stage, self.receives = stage, receives

    def forward(self, received: Tensor) -> Tensor:
        assert self.compute is not None
        self.number += 1
        return self.compute(self.number - 1, received if self.receives else None)


def _pipeline_module(layer: nn.Module, stage: PipelineStage, context: DistributedContext) -> nn.Module:
    """DeepSpeed's module of a pipeline with one layer for each stage, of which this rank has ``layer``."""
    from deepspeed import comm
    from deepspeed.pipe import PipelineModule

    group = context.pipeline

    class Pipeline(PipelineModule):
        """A pipeline whose stages may hold the same weight. DeepSpeed ties whole layers."""

        def _index_tied_modules(self) -> dict[str, Any]:
            self._tied_group = None
            if set(stage.parts[0].parameters) & set(stage.parts[-1].parameters):
                for data in range(context.sequence.data_size):
                    ranks = [self._grid.stage_to_global(s, data=data) for s in (0, group.size - 1)]
                    made = comm.new_group(ranks)
                    if context.rank in ranks:
                        self._tied_group = made
            if group.is_last:
                for p in stage.tied:
                    cast(Any, p).ds_pipe_replicated = True  # the global norm counts it once
            return {}

        def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
            return [(p, self._tied_group) for p in stage.tied if p.requires_grad]

    # every rank adds its own element of the list only
    return Pipeline([layer] * group.size, num_stages=group.size, partition_method="uniform", dynamic_shape=True)


def _check(config: dict[str, Any], json_file: Path, stage: PipelineStage, group: PipelineGroup) -> None:
    """Raise ValueError for settings that do not work with pipeline stages."""
    section = config.get("pipeline")
    interval = section.get("activation_checkpoint_interval") if isinstance(section, dict) else 0
    if interval:
        raise ValueError(
            f"{json_file}: pipeline.activation_checkpoint_interval = {interval}: a stage is one layer of DeepSpeed's "
            "pipeline, and its blocks recompute themselves; remove the key and set train.activation_budget"
        )
    if not any(p.requires_grad for p in stage.parameters()):
        blocks = stage.parts[group.stage].blocks
        raise ValueError(
            f"parallel.pipeline = {group.size}: stage {group.stage} (blocks {blocks.start} to {blocks.stop - 1}) has "
            "no parameters to train; reduce parallel.pipeline, or freeze fewer parameters"
        )
