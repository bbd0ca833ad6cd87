"""Exponential moving average of the weights, used by evaluation and prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ema:
    """Exponential moving average in fp32 of this rank's part of every trainable parameter.

        mean ← mean + (1 - d) (weight - mean),   d = min(decay, (1 + t) / (10 + t)) at the t-th update

    The warm-up reduces the influence of the initial weights, as TensorFlow's ExponentialMovingAverage with num_updates
    does. Under ZeRO-3 a rank averages its shard ``param.ds_tensor``, otherwise the full ``param.data``.
    Memory: 4 bytes per local parameter, and a copy in the parameter's dtype while swapped.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``model`` after ``deepspeed.initialize``."""
        self.decay = decay
        self.updates = 0
        # Any: ZeRO-3 adds attributes to the parameters (ds_tensor, ds_shape, …)
        self._parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._means = {name: local_tensor(p).detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the mean with the weights after an optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        means, weights = list(self._means.values()), [local_tensor(p).detach() for p in self._parameters.values()]
        if weights and all(w.dtype == torch.float32 for w in weights):
            torch._foreach_lerp_(means, weights, 1 - decay)
        else:
            for mean, weight in zip(means, weights, strict=True):
                mean.lerp_(weight.float(), 1 - decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Replace the weights with the mean inside the block; the weights are restored exactly afterwards."""
        weights = {name: local_tensor(p).detach().clone() for name, p in self._parameters.items()}
        self._write(self._means)
        try:
            yield
        finally:
            self._write(weights)

    @torch.no_grad()
    def full_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return name → unsharded tensor on the CPU: means, frozen parameters and persistent buffers.

        A collective operation: every rank calls it.
        """
        tensors: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            local = self._means[name] if name in self._means else local_tensor(p).detach()
            tensors[name] = (_gather(p, local) if is_sharded(p) else local).cpu()
        persistent = model.state_dict(keep_vars=True).keys()
        tensors |= {name: b.detach().cpu() for name, b in model.named_buffers() if name in persistent}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Load the means from the result of ``full_tensors``, which any number of ranks may have produced."""
        for name, p in self._parameters.items():
            whole = tensors[name].float()
            if is_sharded(p):
                flat, size = whole.flatten(), p.ds_tensor.numel()
                start = size * dist.get_rank(p.ds_process_group)
                part = flat[start : start + size]
                self._means[name].zero_()[: part.numel()].copy_(part)
            else:
                self._means[name].copy_(whole)
        self.updates = updates

    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            local_tensor(p).data.copy_(values[name])
            if is_sharded(p) and p.ds_status.name == "AVAILABLE":
                # A small parameter that ZeRO-3 keeps gathered: release the old values, so that the next use gathers the
                # new.
                p.partition()


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 has sharded ``parameter`` over the ranks."""
    return hasattr(parameter, "ds_tensor")


def local_tensor(parameter: Any) -> Tensor:
    """Return this rank's part of ``parameter``: its shard under ZeRO-3, otherwise the full tensor."""
    return parameter.ds_tensor if is_sharded(parameter) else parameter.data


def _gather(parameter: Any, shard: Tensor) -> Tensor:
    """Gather a tensor that is sharded like ``parameter``."""
    group = parameter.ds_process_group
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return torch.cat([s.flatten() for s in shards])[: parameter.ds_numel].view(parameter.ds_shape)
