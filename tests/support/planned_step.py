"""A training step as the planner traces it, and the same step run and measured.

As a program (``python -m tests.support.planned_step RUN_FILE``) it measures the step in a process of its own and prints
its ``Measured`` as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from ds4sci.config.run_file import RunConfig
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import set_default_implementations
from ds4sci.machine.memory import from_proc
from ds4sci.nn.activation_memory import return_freed_tensors
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup, fake_group
from ds4sci.planner import trace
from ds4sci.planner.batches import largest_batch
from ds4sci.tasks import SequenceParallel, Task
from ds4sci.tasks.build import build_task
from ds4sci.train import engine as engines
from ds4sci.train.distributed import set_rank_environment
from ds4sci.train.ema import Ema


@dataclass(frozen=True)
class Measured:
    """Bytes saved for the backward pass; growth of the resident memory in a step, and on one rank of the bytes that
    torch's allocator has given out; bytes sent by operation."""

    saved: int
    peak: int
    allocated: int | None
    sent: dict[str, int]


def tiled() -> AbstractContextManager[None]:
    """Context manager in which operations run the implementation that the planner traces."""
    return set_default_implementations(trace.TILED, KERNELS)


def measure(config: RunConfig, group: SequenceGroup = SINGLE_RANK) -> Measured:
    """Run forward and backward of the largest batch of ``config`` in this process and measure it."""
    return_freed_tensors()
    torch.set_num_threads(1)
    task = build_task(config)
    if group.size > 1:
        assert isinstance(task, SequenceParallel)
        task.set_parallel_groups(group)
    task.model.train()
    with tiled():
        small = _small(config, task)
        for batch in (small, largest_batch(task, 1)):
            for p in task.model.parameters():
                p.grad = None
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")
            before = from_proc("self/status", "VmRSS") or 0
            loss, _ = task.loss(task.model(batch), batch)
            loss.backward()
            peak = (from_proc("self/status", "VmHWM") or 0) - before
            del loss
        for p in task.model.parameters():
            p.grad = None
        allocated = None
        if group.size == 1:
            allocated = _allocator_peak(lambda: task.loss(task.model(batch), batch)[0].backward())
            for p in task.model.parameters():
                p.grad = None
        recorder = trace.Recorder()
        recorder.ignore([*task.model.parameters(), *task.model.buffers()])
        recorder.ignore([x for x in vars(batch).values() if isinstance(x, torch.Tensor)])
        with recorder:
            with recorder.record_saved():
                loss, _ = task.loss(task.model(batch), batch)
            saved = recorder.saved_bytes()
            loss.backward()
    return Measured(saved, peak, allocated, dict(recorder.sent))


def _allocator_peak(step: Callable[[], object]) -> int:
    """Largest number of bytes that torch's CPU allocator gives out during ``step``, beyond those before it.

    The resident memory also contains pages that malloc keeps between tensors; in small steps of many small tensors they
    differ by tens of MB from run to run. On several ranks it would be wrong: gloo frees the tensors of finished
    exchanges in threads that are not profiled.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def _small(config: RunConfig, task: Task) -> Any:
    """The largest batch of the same task at a quarter of the length, which allocates what stays allocated."""
    other = object.__new__(type(task))
    other.__dict__.update(vars(task))
    data = config.settings.data  # type: ignore[attr-defined]
    if hasattr(data, "plan"):
        phases = tuple(phase.model_copy(update={"crops": (16,)}) for phase in data.plan.phases)
        data = data.model_copy(update={"plan": data.plan.model_copy(update={"phases": phases})})
    else:
        phases = tuple(phase.model_copy(update={"length": 64, "row_length": 64}) for phase in data.phases)
        data = data.model_copy(update={"phases": phases})
    other.config = config.settings.model_copy(update={"data": data})  # type: ignore[attr-defined]
    return largest_batch(other, 1)


def planned(config: RunConfig, size: int = 1) -> trace.StepTrace:
    """Trace the step that ``measure`` runs, on a group of ``size`` ranks."""
    with torch.device("meta"):
        task = build_task(config)
    trace.make_fake(task.model, torch.float32)
    with fake_group(size) as group:
        trace.set_groups(task, group)
        return trace.trace_step(task, largest_batch(task, 1), gpu=False)


def measure_rank(run_file: str, out: str) -> None:
    """Measure the step of one of the ranks that share the batch; the last rank writes the result to ``out``."""
    dist.init_process_group("gloo")
    size, rank = dist.get_world_size(), dist.get_rank()
    result = measure(RunConfig.load(run_file), SequenceGroup(rank, size, handle=dist.group.WORLD))
    if rank == size - 1:
        Path(out).write_text(json.dumps(asdict(result)))


def train_rank(small: str, run_file: str, out: str, steps: int = 3) -> None:
    """Train the largest batch of ``run_file`` on DeepSpeed's engine; the last rank writes what it measured to ``out``.

    The peak is the growth of the resident memory since before the model was built. The engine of ``small`` runs first,
    because it allocates what stays allocated.
    """
    return_freed_tensors()
    set_rank_environment()
    engines.silence_deepspeed()
    config = RunConfig.load(run_file)
    context = engines.init_distributed(config.deepspeed_config())
    before = 0
    for file in (small, run_file):
        config = RunConfig.load(file)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = from_proc("self/status", "VmRSS") or 0
        with tiled():
            task = build_task(config)
            engine = engines.Engine(task.model, config.deepspeed, context)
            ema = Ema(engine.named_parameters(), 0.9)
            batch = largest_batch(task, 1)
            for _ in range(steps):
                loss, _ = task.loss(engine.deepspeed(batch), batch)
                engine.backward(loss, 1.0 / context.world_size)
                del loss
                engine.step()
                ema.update()
        peak = (from_proc("self/status", "VmHWM") or 0) - before
        engine.deepspeed.destroy()
        del engine, ema, task
    if context.rank == context.world_size - 1:
        Path(out).write_text(json.dumps({"peak": peak}))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(RunConfig.load(sys.argv[1])))))
