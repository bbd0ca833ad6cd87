"""What a GPU keeps for backward, moved to host memory until then."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Moved = tuple[torch.device, Tensor]


def to_host(x: Tensor) -> Tensor | Moved:
    """``x`` in pinned memory and where it was; ``x`` itself where it lies on the host already.

    The copy is queued on the current stream, in order with what computes: nothing waits, and a layer that is worth
    recomputing takes far longer than its input takes over the bus.
    """
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return x.device, host.copy_(x, non_blocking=True)


def from_host(kept: Tensor | Moved) -> Tensor:
    """What ``to_host`` was given."""
    if isinstance(kept, Tensor):
        return kept
    device, host = kept
    return host.to(device, non_blocking=True)


def on_host() -> saved_tensors_hooks:
    """Inside the block, tensors saved for backward wait in host memory. Inside a checkpoint it is the checkpoint that
    decides: around one, this moves its inputs alone."""
    return saved_tensors_hooks(to_host, from_host)
