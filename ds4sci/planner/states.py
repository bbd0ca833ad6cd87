"""Memory of weights, gradients and optimizer states by ZeRO stage, and the bytes that ZeRO sends, by formula.

N parameters, of which T are trained, on W ranks. Weights, gradients and their communication take w bytes per element: 2
with bf16 or fp16, 4 with fp32. Adam's moments and the EMA of the weights are fp32. So are the master weights, of M = 4
bytes; in stage 0 fp32 weights are updated themselves, M = 0.

| bytes per rank | stage 0 | 1 | 2 | 3 |
|---|---|---|---|---|
| weights | w N | w N | w N | w N / W, and w · (gathered elements) |
| gradients | w T | w T | w T / W | w T / W |
| master weights, moments | (M + 8) T | 12 T / W | 12 T / W | 12 T / W |
| EMA | 4 T | 4 T | 4 T | 4 T / W |
| gradient buckets | 0 | w B, twice with ``overlap_comm`` | the same | w B |
| optimizer step | 4 T (16 bits), and 4 T | 4 T / W and 4 T / W | the same | the same |

B = ``reduce_bucket_size``, by default 5e8 elements, allocated whole. Stage 3 gathers at most
``stage3_max_live_parameters`` (by default 1e9) elements and prefetches ``stage3_prefetch_bucket_size``. The optimizer
step needs fp32 gradients and the temporaries of torch's Adam, after the activations are freed. Offloading the optimizer
moves master weights, moments and stage 3's gradients to the host, 1.5 · 16 T bytes per machine with pinned copies;
offloading parameters also moves the shards of weights and EMA.

Checked against DeepSpeed 0.19 (``deepspeed/runtime/zero/stage_1_and_2.py``, ``stage3.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ds4sci.config import deepspeed_json

DEFAULT_BUCKET = 500_000_000
DEFAULT_LIVE = 1_000_000_000
DEFAULT_PREFETCH = 50_000_000
MOMENTS = {"sgd": 0, "adagrad": 1, "lion": 1, "muon": 1, "lars": 1}
"""fp32 numbers of state per parameter, by the lower-case name of the optimizer; 2 for Adam and all others."""


@dataclass(frozen=True)
class Sizes:
    """Elements of a model: all parameters, trained ones, and those that ZeRO-3 gathers together at most."""

    total: int
    trained: int
    largest: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Count the parameters of ``model``, with real or fake weights."""
        parameters = list(model.parameters())
        largest = 0
        for module in model.modules():
            own = list(module.parameters(recurse=bool(getattr(module, "reads_parameters_of_children", False))))
            largest = max(largest, sum(p.numel() for p in own))
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return cls(sum(p.numel() for p in parameters), trained, largest)


@dataclass(frozen=True)
class States:
    """Bytes of a rank by term: on the device, during the optimizer step only, at the start, and on the host."""

    device: dict[str, int]
    step: int
    start: int
    host: int


def weight_bytes(config: dict[str, Any]) -> int:
    """Return the bytes of a weight on the device: 2 with bf16 or fp16, otherwise 4."""
    half = any(isinstance(config.get(key), dict) and config[key].get("enabled") for key in ("bf16", "fp16"))
    return 2 if half else 4


def zero_states(sizes: Sizes, config: dict[str, Any], ranks: int) -> States:
    """Return the states of one of ``ranks`` ranks by the DeepSpeed JSON ``config``."""
    stage, w, zero = deepspeed_json.zero_stage(config), weight_bytes(config), deepspeed_json.zero_section(config)
    n, t = sizes.total, sizes.trained
    shard = -(-t // ranks)
    moments = 4 * MOMENTS.get(str(config.get("optimizer", {}).get("type", "")).lower(), 2)
    offload_optimizer, offload_parameters = deepspeed_json.offloaded_parts(config)
    master = 4 if w == 2 or stage > 0 else 0
    owned = t if stage == 0 else shard
    device = {
        "weights": w * (-(-n // ranks) if stage == 3 else n),
        "gathered weights": w * min(n, _gathered(sizes, zero)) if stage == 3 else 0,
        "gradients": w * (t if stage < 2 else shard),
        "optimizer": (master + moments) * owned,
        "EMA": 4 * (shard if stage == 3 else t),
        "gradient buckets": _buckets(zero, stage) * w,
    }
    step = 4 * owned * (2 if moments else 1)
    host = 0
    if offload_optimizer:
        device["optimizer"], step = 0, 0
        if stage == 3:
            device["gradients"] = 0
        host += 24 * shard
    if offload_parameters:
        host += device["weights"] + device["EMA"]
        device["weights"] = device["EMA"] = 0
    return States({name: size for name, size in device.items() if size}, step, w * n if stage == 3 else 0, host)


def zero_traffic(sizes: Sizes, config: dict[str, Any], ranks: int, accumulation: int) -> dict[str, int]:
    """Return the bytes that a rank sends per optimizer step for ZeRO, by operation, with rings.

    Stage 0: all-reduce of gradients. 1: reduce-scatter of gradients, all-gather of weights. 2: the reduce-scatter for
    each micro-batch. 3: as well, and all-gathers of weights for each forward and each backward pass.
    """
    if ranks == 1:
        return {}
    stage, w = deepspeed_json.zero_stage(config), weight_bytes(config)
    part = lambda elements: w * elements * (ranks - 1) // ranks  # noqa: E731
    if stage == 0:
        return {"all-reduce of gradients": 2 * part(sizes.trained)}
    reduce = {"reduce-scatter of gradients": part(sizes.trained) * (1 if stage == 1 else accumulation)}
    if stage < 3:
        return reduce | {"all-gather of weights": part(sizes.trained)}
    passes = 1 if sizes.total <= _gathered(sizes, deepspeed_json.zero_section(config)) else 2
    return reduce | {"all-gather of weights": passes * part(sizes.total) * accumulation}


def _gathered(sizes: Sizes, zero: dict[str, Any]) -> int:
    """Elements of gathered weights at most: the live ones, and a module that is gathered beyond them."""
    live = int(zero.get("stage3_max_live_parameters", DEFAULT_LIVE))
    reuse = int(zero.get("stage3_max_reuse_distance", DEFAULT_LIVE))
    prefetch = int(zero.get("stage3_prefetch_bucket_size", DEFAULT_PREFETCH))
    return max(min(live, reuse + prefetch), sizes.largest) + sizes.largest


def _buckets(zero: dict[str, Any], stage: int) -> int:
    """Elements of the buffers in which gradients are reduced."""
    if stage == 0 or not zero.get("contiguous_gradients", True):
        return 0
    size = int(zero.get("reduce_bucket_size", DEFAULT_BUCKET))
    return 2 * size if stage < 3 and zero.get("overlap_comm", False) else size
