"""Layouts that the selftest trains on, and the DeepSpeed JSON of each: the user's own with small, exact steps.

Changed in the JSON: batch sizes; the optimizer, which is plain SGD, or AdamW where a resume is tested, with a constant
rate; precision, which is fp32 except in one case; monitors and profilers, which are off. ZeRO, offload, clipping and
everything else stay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from ds4sci.config import deepspeed_json

SAMPLES = 4
"""Samples of a step for each group of ranks."""
STEPS, SAVED = 3, 2
"""Steps of a run; step of the checkpoint that another layout resumes."""
RESUMED_STEPS = 5
"""Steps of a run that is saved and resumed: three after the checkpoint."""

SGD = {"type": "SGD", "params": {"lr": 0.1}}
ADAM = {"type": "AdamW", "params": {"lr": 2e-3, "weight_decay": 0.1, "torch_adam": True}}
"""Rates at which a wrong step moves the next losses by far more than rounding."""

_DROPPED = (
    "train_batch_size", "scheduler", "wandb", "tensorboard", "csv_monitor", "comet", "flops_profiler", "comms_logger",
    "wall_clock_breakdown", "autotuning", "elasticity", "checkpoint",
)  # fmt: skip
_PRECISION = ("bf16", "fp16", "amp", "torch_autocast", "data_types", "bfloat16", "communication_data_type")


@dataclass(frozen=True)
class Layout:
    """Ranks and how they divide the work.

    ranks, sequence, pipeline  number of ranks; ranks that share an example; stages of the model
    stage                      ZeRO stage
    micro, batch               samples of a micro-batch, and of a step
    own_precision              keep the precision of the JSON
    adam                       AdamW instead of SGD
    """

    ranks: int
    sequence: int
    stage: int
    micro: int
    batch: int
    own_precision: bool = False
    adam: bool = False
    pipeline: int = 1

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in a step."""
        return self.batch * self.sequence * self.pipeline // (self.ranks * self.micro)

    def describe(self) -> str:
        """Return the layout in words, such as ``2 ranks, ZeRO 2, 2 × 2 samples``."""
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        shared = f", {self.sequence} ranks per example" if self.sequence > 1 else ""
        shared += f", {self.pipeline} pipeline stages" if self.pipeline > 1 else ""
        return f"{ranks}{shared}, ZeRO {self.stage}, {self.micro} × {self.accumulation} samples"

    def deepspeed(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the DeepSpeed JSON of this layout, from the user's own."""
        dropped = _DROPPED + (() if self.own_precision else _PRECISION)
        tree = {key: copy.deepcopy(value) for key, value in own.items() if key not in dropped}
        zero = dict(deepspeed_json.zero_section(tree))
        # Sharded although they are small; a threshold of DeepSpeed would keep all parameters of the miniature whole.
        zero |= {"stage": self.stage, "stage3_param_persistence_threshold": 0}
        if self.stage < 3:
            zero.pop("offload_param", None)
        if self.stage < 1:
            zero.pop("offload_optimizer", None)
        return tree | {
            "train_micro_batch_size_per_gpu": self.micro, "gradient_accumulation_steps": self.accumulation,
            "optimizer": ADAM if self.adam else SGD, "zero_optimization": zero, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }  # fmt: skip
