"""The running mean of the weights, which evaluation and prediction use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ema:
    """Exponential moving average in fp32 of what this rank holds of every trainable parameter.

        mean ← mean + (1 - d) (weight - mean),   d = min(decay, (1 + t) / (10 + t)) at the t-th update

    The warm-up forgets the random start quickly (as TensorFlow's ExponentialMovingAverage with num_updates).
    Under ZeRO-3 a rank holds, and averages, its shard ``param.ds_tensor``; otherwise the whole ``param.data``.
    Memory: 4 bytes per parameter held, and once more in the parameter's dtype while swapped.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``model`` as ``deepspeed.initialize`` left it. Raises ValueError where its shards lie on NVMe."""
        self.decay = decay
        self.updates = 0
        # Any: ZeRO-3 hangs its own attributes (ds_tensor, ds_shape, …) on the parameters
        self._parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, p in self._parameters.items():
            if is_sharded(p) and p.ds_tensor.numel() == 0:
                raise ValueError(f"{name}: parameters offloaded to NVMe cannot be averaged; offload them to the cpu")
        self._means = {name: local_tensor(p).detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one optimizer step's weights into the mean."""
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
        """The mean in place of the weights inside the block; the weights come back bit for bit."""
        weights = {name: local_tensor(p).detach().clone() for name, p in self._parameters.items()}
        self._write(self._means)
        try:
            yield
        finally:
            self._write(weights)

    @torch.no_grad()
    def full_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Names → whole tensors on the CPU: the means, frozen parameters and persistent buffers. All ranks call it."""
        tensors: dict[str, Tensor] = {}
        for name, p in model.named_parameters():
            local = self._means[name] if name in self._means else local_tensor(p).detach()
            tensors[name] = (_gather(p, local) if is_sharded(p) else local).cpu()
        persistent = model.state_dict(keep_vars=True).keys()
        tensors |= {name: b.detach().cpu() for name, b in model.named_buffers() if name in persistent}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Take the means from what ``full_tensors`` gave, whatever number of ranks gave it."""
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
                # A small parameter that ZeRO-3 keeps gathered: drop the old whole, the next use gathers the new one.
                p.partition()


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 has split ``parameter`` among the ranks."""
    return hasattr(parameter, "ds_tensor")


def local_tensor(parameter: Any) -> Tensor:
    """What this rank stores of ``parameter``: its shard under ZeRO-3, else all of it."""
    return parameter.ds_tensor if is_sharded(parameter) else parameter.data


def _gather(parameter: Any, shard: Tensor) -> Tensor:
    """The whole of a tensor that is split like ``parameter``."""
    group = parameter.ds_process_group
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return torch.cat([s.flatten() for s in shards])[: parameter.ds_numel].view(parameter.ds_shape)
