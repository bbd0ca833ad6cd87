"""Numbers of DeepSpeed's engine that a checkpoint holds besides tensors: hyperparameters, schedule, scale, counters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ds4sci.train.optimizer_slices import FAMILIES, base_optimizer

if TYPE_CHECKING:
    from ds4sci.train.engine import Engine

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
IMPLEMENTATION = ("params", "foreach", "fused", "capturable", "differentiable")
"""Entries of a parameter group that say how an optimizer computes; the layout decides them."""


def engine_state(engine: Engine) -> dict[str, Any]:
    """Return the state as JSON values, the same on all ranks."""
    optimizer, schedule = base_optimizer(engine), engine.deepspeed.lr_scheduler
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [_plain({k: _number(v) for k, v in g.items()}, IMPLEMENTATION) for g in optimizer.param_groups],
        "schedule": None if schedule is None else type(schedule).__name__,
        "schedule_state": {} if schedule is None else _plain(schedule.state_dict()),
        "loss_scale": {k: v for k in LOSS_SCALE if (v := getattr(_loss_scale(engine), k, None)) is not None},
        "counters": {k: int(getattr(engine.deepspeed, k)) for k in COUNTERS},
    }


def restore_engine_state(engine: Engine, state: dict[str, Any]) -> None:
    """Restore what ``engine_state`` returned on any layout, after ``check_kinds``."""
    optimizer, schedule, scale = base_optimizer(engine), engine.deepspeed.lr_scheduler, _loss_scale(engine)
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        for key in saved.keys() & group.keys():
            if isinstance(group[key], Tensor):
                group[key].fill_(saved[key])
            else:
                group[key] = tuple(saved[key]) if isinstance(group[key], tuple) else saved[key]
    if schedule is not None:
        schedule.load_state_dict(state["schedule_state"])
    for key, value in state["loss_scale"].items():
        if hasattr(scale, key):
            setattr(scale, key, value)
    for key, value in state["counters"].items():
        setattr(engine.deepspeed, key, value)


def check_kinds(engine: Engine, state: dict[str, Any], where: str) -> None:
    """Raise ValueError if optimizer, parameter groups or schedule of the JSON cannot take ``state``.

    where  path of the checkpoint, for messages
    """
    optimizer, schedule = base_optimizer(engine), engine.deepspeed.lr_scheduler
    kind, before = type(optimizer).__name__, state["optimizer"]
    if not any(kind in family and before in family for family in FAMILIES):
        raise ValueError(
            f"{engine.json_file}: optimizer.type: {where} holds the state of {before}, which {kind} cannot continue; "
            f"resume with {before}, or start a new run with train.weights"
        )
    if len(optimizer.param_groups) != len(state["groups"]):
        raise ValueError(
            f"{engine.json_file}: the optimizer has {len(optimizer.param_groups)} parameter groups, but {where} has "
            f"{len(state['groups'])}; resume with the optimizer of the run"
        )
    name = None if schedule is None else type(schedule).__name__
    if name != state["schedule"]:
        raise ValueError(
            f"{engine.json_file}: scheduler.type is {name}, but {where} was written with {state['schedule']}; resume "
            "with the schedule of the run, or start a new run with train.weights"
        )


def _loss_scale(engine: Engine) -> Any:
    """Return the object that searches the loss scale of fp16, or None."""
    if not engine.uses_dynamic_loss_scale:
        return None
    wrapper = engine.deepspeed.optimizer
    return getattr(wrapper, "loss_scale_config", None) or getattr(wrapper, "loss_scaler", None)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _plain(values: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the entries that JSON holds exactly. Others are constants of the DeepSpeed JSON, such as the milestones of
    a schedule, and keep the values it gives."""
    plain = {}
    for key, value in values.items():
        if key in without:
            continue
        try:
            same = json.loads(json.dumps(value)) == (list(value) if isinstance(value, tuple) else value)
        except (TypeError, ValueError):
            continue
        if same:
            plain[key] = value
    return plain
