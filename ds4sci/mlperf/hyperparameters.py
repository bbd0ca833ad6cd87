"""Hyperparameters of a run as MLPerf logs name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ds4sci.config.deepspeed_json import zero_stage


def of_deepspeed(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of optimizer, schedule, clipping, precision and ZeRO stage of a DeepSpeed JSON."""
    optimizer = config["optimizer"]
    name, params = str(optimizer["type"]), dict(optimizer.get("params", {}))
    yield "opt_name", name
    if "lr" in params:
        yield "opt_base_learning_rate", params["lr"]
    if name.lower() in ("adam", "adamw", "lamb"):
        prefix = f"opt_{name.lower()}"
        beta_1, beta_2 = params.get("betas", (0.9, 0.999))
        yield f"{prefix}_beta_1", beta_1
        yield f"{prefix}_beta_2", beta_2
        yield f"{prefix}_epsilon", params.get("eps", 1e-8)
        yield "opt_amsgrad", bool(params.get("amsgrad", False))
    yield "opt_weight_decay", params.get("weight_decay", 0.0)
    clip = float(config.get("gradient_clipping", 0.0))
    yield "opt_gradient_clipping", clip > 0
    if clip > 0:
        yield "opt_gradient_clip_norm", clip
    yield from _schedule(config.get("scheduler"))
    bf16, fp16 = (bool(config.get(key, {}).get("enabled", False)) for key in ("bf16", "fp16"))
    yield "precision", "bf16" if bf16 else "fp16" if fp16 else "fp32"
    yield "zero_stage", zero_stage(dict(config))


def _schedule(scheduler: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if not scheduler:
        yield "opt_learning_rate_warmup_steps", 0
        return
    params = dict(scheduler.get("params", {}))
    yield "opt_learning_rate_decay_schedule", scheduler.get("type")
    warms_up = str(scheduler.get("type")).startswith("Warmup")
    yield "opt_learning_rate_warmup_steps", params.get("warmup_num_steps", 1000) if warms_up else 0
    if "warmup_min_lr" in params:
        yield "opt_learning_rate_warmup_init", params["warmup_min_lr"]
    if "total_num_steps" in params:
        yield "opt_learning_rate_training_steps", params["total_num_steps"]
