"""Scale of the gradients that DeepSpeed computes from those of the ranks.

The gradient of a step is the sum over all ranks and micro-batches, each weighted by its share of the step's loss.
DeepSpeed averages over the ranks instead: with W ranks, or W copies of a pipeline, its gradient is 1 / W of the sum.
With sequence parallelism DeepSpeed 0.19 sums over the ranks of a group and averages over groups for ZeRO 0, 1 and 2,
and divides that by the group size P for stage 3 with its default reduce-scatter. Adam hides such factors; clipping,
plain SGD and the logged norm do not. Therefore, with sequence parallelism, the scale is measured at start-up with a
model of one weight and the user's own JSON, and the loss is divided by it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ds4sci.train import extension_builds
from ds4sci.train.distributed import DistributedContext

_SECTIONS_NOT_PROBED = (
    "wandb",
    "tensorboard",
    "csv_monitor",
    "comet",
    "scheduler",
    "flops_profiler",
    "checkpoint",
    "aio",
)
"""Sections that open files, use the network or depend on the model of the run."""


def gradient_scale(config: dict[str, Any], context: DistributedContext) -> float:
    """Return DeepSpeed's gradient divided by the sum of the gradients of the ranks."""
    if context.sequence.size == 1:
        return 1.0 / context.sequence.data_size
    return _measure_with_probe(config, context) / context.world_size


def _measure_with_probe(config: dict[str, Any], context: DistributedContext) -> float:
    """Return DeepSpeed's gradient of a weight whose loss has slope 1 on every rank."""
    import deepspeed

    probe = {key: copy.deepcopy(value) for key, value in config.items() if key not in _SECTIONS_NOT_PROBED}
    probe |= {"gradient_clipping": 0.0, "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}}}
    probe |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    probe["train_batch_size"] = context.sequence.data_size
    zero = probe.get("zero_optimization")
    if isinstance(zero, dict):
        for key in ("offload_optimizer", "offload_param", "cpu_offload"):
            zero.pop(key, None)  # offloading does not change gradients
    model = torch.nn.Linear(1, 1, bias=False)
    with extension_builds.suppress_stdout():
        engine, _, _, _ = deepspeed.initialize(
            model=model, model_parameters=list(model.parameters()), config=probe, dist_init_required=False,
            mpu=context.sequence.mpu,
        )  # fmt: skip
        dtype = next(iter(engine.module.parameters())).dtype
        loss = engine(torch.ones(1, 1, device=context.device, dtype=dtype)).sum()
        engine.backward(loss.float() if dtype == torch.bfloat16 else loss)
        bare = isinstance(engine.optimizer, torch.optim.Optimizer)
        found = float(engine.module.weight.grad.norm()) if bare else 0.0
        engine.step()
        if not bare:
            found = float(engine.get_global_grad_norm())
        engine.destroy()
    if not found > 0:
        raise RuntimeError(f"DeepSpeed computed no gradient for the probe (norm {found}); its scale cannot be measured")
    return found
