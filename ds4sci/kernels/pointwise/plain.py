"""The work between matrix products in plain torch: any device, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    c = x.shape[-1:]
    if weight.dtype != x.dtype:
        y, mean, rstd = torch.native_layer_norm(x.to(weight.dtype), c, weight, bias, eps)
        return y.to(x.dtype).view(-1, *c), mean, rstd
    y, mean, rstd = torch.native_layer_norm(x, c, weight, bias, eps)
    return y.view(-1, *c), mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    c = x.shape[-1:]
    wide = x.to(weight.dtype)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        grad.view(x.shape).to(weight.dtype), wide, c, mean, rstd, weight, bias, [True, True, bias is not None]
    )
    return dx.to(x.dtype), dw, db
