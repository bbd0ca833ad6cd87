"""The transition in readable torch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Activation = Literal["relu", "swiglu"]


def reference(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight_1: Tensor,
    bias_1: Tensor | None,
    weight_2: Tensor,
    bias_2: Tensor | None,
    *,
    activation: Activation = "relu",
    eps: float = 1e-5,
) -> Tensor:
    if norm_weight is not None:
        wide = F.layer_norm(x.to(norm_weight.dtype), x.shape[-1:], norm_weight, norm_bias, eps)
        x = wide.to(x.dtype)
    hidden = F.linear(x, weight_1, bias_1)
    if activation == "relu":
        hidden = hidden.relu()
    else:
        gate, value = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    return F.linear(hidden, weight_2, bias_2)
