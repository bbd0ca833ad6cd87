"""FLOPs of a training step as the model needs them: forward and backward of a micro-batch without recomputation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ds4sci.config.run_file import RunConfig
from ds4sci.kernels.flop_formulas import FORMULAS
from ds4sci.nn.activation_budget import stacks
from ds4sci.tasks.build import build_task, default_kernels


def count(config: RunConfig, micro: int, *, start_step: int = 0) -> int:
    """Operations of matrix products, convolutions and attention in forward and backward of ``micro`` samples.

    Runs one micro-batch of the task's own data in this process. Recomputation of blocks and layers is switched off, as
    utilization by convention leaves it out. What kernels compute again inside an operator counts.
    """
    torch.manual_seed(0)
    task = build_task(config)
    model: Any = task.model
    for stack in stacks(model):
        stack.limit = math.inf
    stream = task.batches(start_step=start_step, rank=0, world_size=1, micro_batch_size=micro, accumulation_steps=1)
    batch = next(iter(stream))
    if hasattr(stream, "close"):
        stream.close()
    model.train()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, default_kernels(config):
        loss, _ = task.loss(model(batch), batch)
        loss.backward()
    return int(counter.get_total_flops())
