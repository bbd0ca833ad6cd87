"""A DeepSpeed JSON for another batch size: learning rate, schedule and batch, for the same number of samples.

With k = new batch / old batch, a run of the same number of samples has 1/k as many steps. The learning rate becomes

    linear   k γ     for SGD and LARS (Goyal et al., arXiv 1706.02677), with a warm-up
    sqrt     √k γ    for Adam and LAMB (You et al., arXiv 1904.00962; Malladi et al., arXiv 2205.10287)

The rules hold up to about the gradient noise scale (``train.gradient_noise``); beyond it no rule keeps the quality of a
step.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

Rule = Literal["linear", "sqrt", "none"]

LINEAR = ("sgd", "lars", "rmsprop")
"""Optimizers, in lower case, whose default rule is ``linear``."""
RATES = (
    "lr", "warmup_min_lr", "warmup_max_lr", "cycle_min_lr", "cycle_max_lr", "lr_range_test_min_lr", "max_lr", "base_lr",
    "eta_min", "muon_lr", "adam_lr",
)  # fmt: skip
"""Learning rates among the parameters of optimizers and schedules."""
STEPS = (
    "total_num_steps", "warmup_num_steps", "cycle_first_step_size", "cycle_second_step_size", "decay_step_size",
    "lr_range_test_step_size", "total_steps", "step_size", "T_max", "step_size_up", "step_size_down",
)  # fmt: skip
"""Numbers of steps among the parameters of schedules."""


def default_rule(config: dict[str, Any]) -> Rule:
    """The usual rule of the optimizer of a DeepSpeed JSON."""
    return "linear" if str(config["optimizer"]["type"]).lower() in LINEAR else "sqrt"


def scale_to_batch(
    config: dict[str, Any], batch: int, *, rule: Rule | None = None, warmup_steps: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of ``config`` for ``batch`` samples per step, and a line for each change.

    config        a DeepSpeed JSON with ``train_batch_size``
    rule          of the learning rate; by default that of the optimizer
    warmup_steps  warm-up of the new schedule; by default the old one's samples

    The micro-batch stays, if it is set, and the number of accumulation steps follows from the ranks. Raises ValueError
    if the JSON has no ``train_batch_size``, or the batches do not fit the micro-batch or the accumulation steps.
    """
    old = config.get("train_batch_size")
    if not isinstance(old, int) or old < 1:
        raise ValueError(
            f"train_batch_size is {'missing' if old is None else repr(old)}: expected a whole number above 0; without "
            "it the batch depends on the number of ranks"
        )
    if batch < 1:
        raise ValueError(f"a batch of {batch} samples: expected at least 1")
    micro = config.get("train_micro_batch_size_per_gpu")
    if isinstance(micro, int) and batch % micro:
        raise ValueError(
            f"a batch of {batch} samples is not a multiple of train_micro_batch_size_per_gpu = {micro}; choose a "
            "multiple, or another micro-batch"
        )
    new, k = copy.deepcopy(config), batch / old
    factor = {"linear": k, "sqrt": math.sqrt(k), "none": 1.0}[rule or default_rule(config)]
    changes = [f"train_batch_size: {old} → {batch}"]
    new["train_batch_size"] = batch
    accumulation = config.get("gradient_accumulation_steps")
    if isinstance(micro, int) and accumulation is not None:
        del new["gradient_accumulation_steps"]
        changes.append("gradient_accumulation_steps: removed; DeepSpeed derives it from batch, micro-batch and ranks")
    elif isinstance(accumulation, int):
        if accumulation * batch % old:
            raise ValueError(
                f"gradient_accumulation_steps = {accumulation} × {k:g} is not a whole number, and without "
                "train_micro_batch_size_per_gpu the micro-batch would change; add that key"
            )
        new["gradient_accumulation_steps"] = accumulation * batch // old
        changes.append(f"gradient_accumulation_steps: {accumulation} → {new['gradient_accumulation_steps']}")
    elif not isinstance(micro, int):
        changes.append(
            "note: neither train_micro_batch_size_per_gpu nor gradient_accumulation_steps is set, so that the "
            "micro-batch grows with the batch; set the first if memory is short"
        )
    for section in ("optimizer", "scheduler"):
        params = (new.get(section) or {}).get("params") or {}
        for key in params.keys() & {*RATES} if factor != 1 else ():
            before = params[key]
            if isinstance(before, list):
                params[key] = [_rounded(one * factor) for one in before]
            elif isinstance(before, int | float) and before:
                params[key] = _rounded(before * factor)
            if params[key] != before:
                changes.append(f"{section}.params.{key}: {before} → {params[key]}")
        for key in params.keys() & {*STEPS} if section == "scheduler" else ():
            if isinstance(params[key], int | float) and params[key] > 0:
                before, params[key] = params[key], max(1, round(params[key] / k))
                changes.append(f"{section}.params.{key}: {before} → {params[key]}")
    if warmup_steps is not None:
        params = (new.get("scheduler") or {}).get("params") or {}
        if "warmup_num_steps" not in params:
            raise ValueError(
                "the scheduler has no warmup_num_steps to set; add one, such as "
                '"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 1000, "warmup_num_steps": 50}}'
            )
        params["warmup_num_steps"] = warmup_steps
        changes.append(f"scheduler.params.warmup_num_steps: {warmup_steps}, as given")
    return new, changes[:1] + sorted(changes[1:])


def _rounded(value: float) -> float:
    """``value`` with six digits, so that the JSON stays readable."""
    return float(f"{value:.6g}")
