"""The pair bias in readable torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def reference(
    z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, *, eps: float = 1e-5
) -> Tensor:
    if norm_weight is not None:
        z = F.layer_norm(z.to(norm_weight.dtype), z.shape[-1:], norm_weight, norm_bias, eps).to(z.dtype)
    return F.linear(z, weight).permute(0, 3, 1, 2)
