"""Exponential moving average of the weights, used by evaluation and prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
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

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        """``parameters``: the named parameters after ``deepspeed.initialize``; frozen ones are left out."""
        self.decay = decay
        self.updates = 0
        # Any: ZeRO-3 adds attributes to the parameters (ds_tensor, ds_shape, …)
        self._parameters: dict[str, Any] = {name: p for name, p in parameters if p.requires_grad}
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

    @property
    def names(self) -> list[str]:
        """Names of the averaged parameters."""
        return list(self._means)

    def local_slice(self, name: str) -> tuple[Tensor, int]:
        """Return this rank's elements of a mean, as a view, and the place of the first in the whole tensor."""
        return local_slice(self._parameters[name], self._means[name])

    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            local_tensor(p).data.copy_(values[name])
            release_gathered(p)


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 has sharded ``parameter`` over the ranks."""
    return hasattr(parameter, "ds_tensor")


def local_tensor(parameter: Any) -> Tensor:
    """Return this rank's part of ``parameter``: its shard under ZeRO-3, otherwise the full tensor."""
    return parameter.ds_tensor if is_sharded(parameter) else parameter.data


def local_slice(parameter: Any, local: Tensor) -> tuple[Tensor, int]:
    """Return ``local``, divided as ``parameter`` is, without padding, and the place of its first element."""
    if not is_sharded(parameter):
        return local, 0
    size = int(parameter.ds_numel)
    start = min(size, local.numel() * dist.get_rank(parameter.ds_process_group))
    return local.view(-1)[: size - start], start


def release_gathered(parameter: Any) -> None:
    """Release the old values of a small parameter that ZeRO-3 keeps gathered: the next use gathers the new ones."""
    if is_sharded(parameter) and parameter.ds_status.name == "AVAILABLE":
        parameter.partition()
