"""What DeepSpeed makes of the gradients of the ranks.

The gradient of a step is the sum over all ranks and micro-batches, each of which has its share of the step's loss.
DeepSpeed averages over the ranks instead: it gives 1 / W of the sum on W ranks. Where ranks share rows, DeepSpeed 0.19
gives the sum over the ranks of a group and the mean over groups for ZeRO 0, 1 and 2, and 1 / P of that for stage 3 with
its default reduce-scatter. Adam hides such factors; clipping, plain SGD and the norm in the log do not. So for shared
rows a model of one weight is asked, at start-up and with the user's own JSON; the loss is divided by what was found.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ds4sci.train import extension_builds
from ds4sci.train.distributed import DistributedContext

_SECTIONS_WITHOUT_PROBE = (
    "wandb",
    "tensorboard",
    "csv_monitor",
    "comet",
    "scheduler",
    "flops_profiler",
    "checkpoint",
    "aio",
)
"""Sections that open files, ask a network, or count on the run's own model."""


def gradient_scale(config: dict[str, Any], context: DistributedContext) -> float:
    """DeepSpeed's gradient over the sum of the ranks' gradients."""
    return (1.0 if context.sequence.size == 1 else _measure_with_probe(config, context)) / context.world_size


def _measure_with_probe(config: dict[str, Any], context: DistributedContext) -> float:
    """DeepSpeed's gradient of a weight whose loss has slope 1 on every rank."""
    import deepspeed

    probe = {key: copy.deepcopy(value) for key, value in config.items() if key not in _SECTIONS_WITHOUT_PROBE}
    probe |= {"gradient_clipping": 0.0, "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}}}
    probe |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    probe["train_batch_size"] = context.sequence.data_size
    zero = probe.get("zero_optimization")
    if isinstance(zero, dict):
        for key in ("offload_optimizer", "offload_param", "cpu_offload"):
            zero.pop(key, None)  # where states lie does not change what gradients are
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
        raise RuntimeError(f"DeepSpeed gave no gradient to a probe (norm {found}); its scale cannot be measured")
    return found
