"""Programs of the ranks of a selftest: training on a layout, and the reference in one process."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ds4sci.config.run_file import RunConfig
from ds4sci.selftest.layouts import STEPS
from ds4sci.tasks import Task, batch_weight
from ds4sci.tasks.build import build_task
from ds4sci.types import in_double


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch as one rank computed it.

    step, place  of the run; number of the micro-batch in the step, over all ranks
    share, loss  its weight in the loss of the step; its loss, or this rank's part of it
    """

    rank: int
    step: int
    place: int
    share: float
    loss: float


def train(cases_file: str) -> None:
    """Train or resume every case of the file on this rank, and write its micro-batches and seconds to the run folder.

    A case is {"config": run file, "deepspeed": JSON, "overrides": […], "resume": run folder or null}. All cases have
    the same ``parallel.sequence`` and ``parallel.pipeline``.
    """
    from ds4sci.train import distributed, loop
    from ds4sci.train.run import Session

    loop.peak_rate = lambda device, dtype: None  # only displayed; measuring takes seconds
    # DeepSpeed creates the groups of a process once.
    distributed.create_sequence_group = functools.cache(distributed.create_sequence_group)
    for case in json.loads(Path(cases_file).read_text(encoding="utf-8")):
        began = time.monotonic()
        resume = None if case["resume"] is None else Path(case["resume"])
        config = RunConfig.load(case["config"], case["overrides"], deepspeed=case["deepspeed"])
        session = Session.join(config, resume=resume)
        group, rank = session.context.sequence, session.context.rank
        seen: list[MicroBatch] = []

        def observe(
            step: int, parts: Any, result: Any, seen: list[MicroBatch] = seen, group: Any = group, rank: int = rank
        ) -> None:
            # a pipeline stage before the last has no losses
            for number, ((_, share), values) in enumerate(zip(parts, result.losses, strict=False)):
                place = number * group.data_size + group.data_rank
                seen.append(MicroBatch(rank, step, place, share, values["loss"]))

        session.train(observe)
        record = {"seconds": time.monotonic() - began, "micro_batches": [asdict(one) for one in seen]}
        (session.run / f"selftest_rank{rank}.json").write_text(json.dumps(record), encoding="utf-8")


def reference(arguments_file: str) -> None:
    """Train in fp64 with plain torch: whole batches, ``torch.optim.SGD``, no DeepSpeed. Writes what runs are compared
    with to ``out``.

    The file holds {"config", "deepspeed", "batch", "micro_sizes", "rate", "clip", "out"}.
    """
    given = json.loads(Path(arguments_file).read_text(encoding="utf-8"))
    config = RunConfig.load(given["config"], deepspeed=given["deepspeed"])
    task = build_task(config)
    assert config.train.weights is not None, "the miniature has initial weights"
    task.model.load_state_dict(safetensors.torch.load_file(config.train.weights), strict=False)
    model = task.model.double().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=given["rate"])
    batch = given["batch"]
    split = {size: _stream(task, size, batch // size) for size in sorted({batch, *given["micro_sizes"]})}
    whole = split.pop(batch)
    losses, norms, first = [], [], {}
    micro: dict[int, list[list[tuple[float, float]]]] = {size: [] for size in (batch, *split)}
    for step in range(STEPS):
        for size, batches in split.items():
            micro[size].append(_shares(task, model, [next(batches) for _ in range(batch // size)]))
        optimizer.zero_grad()
        loss = _loss(task, model, next(whole))
        loss.backward()
        losses.append(float(loss.detach()))
        micro[batch].append([(1.0, losses[-1])])
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        if given["clip"]:
            torch.nn.utils.clip_grad_norm_(parameters, given["clip"])
        optimizer.step()
        if step == 0:
            first = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.save({"losses": losses, "norms": norms, "first": first, "micro": micro}, given["out"])


def _stream(task: Task, micro: int, accumulation: int) -> Any:
    return task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=micro, accumulation_steps=accumulation)


def _loss(task: Task, model: nn.Module, batch: Any) -> torch.Tensor:
    batch = in_double(batch)
    return task.loss(model(batch), batch)[0]


@torch.no_grad()
def _shares(task: Task, model: nn.Module, batches: list[Any]) -> list[tuple[float, float]]:
    """Return (share of the loss of the step, loss) of every micro-batch of a step."""
    weights = [batch_weight(task, batch) for batch in batches]
    total = sum(weights)
    pairs = zip(weights, batches, strict=True)
    return [(weight / total if total else 0.0, float(_loss(task, model, batch))) for weight, batch in pairs]
