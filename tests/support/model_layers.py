"""Layers that OpenFold, OpenFold3 and Protenix have in common, re-implemented for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """Linear layer that casts its weights to bf16 for bf16 activations, also outside autocast.

    precision  dtype of the computation, whatever the activations are
    """

    def __init__(self, c_in: int, c_out: int, bias: bool = True, precision: torch.dtype | None = None) -> None:
        super().__init__(c_in, c_out, bias=bias)
        self.precision = precision

    def forward(self, input: Tensor) -> Tensor:
        dtype = self.precision or (torch.bfloat16 if input.dtype == torch.bfloat16 else self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        x = input.to(dtype) if self.precision else input
        out = nn.functional.linear(x, self.weight.to(dtype), bias)
        return out.to(input.dtype) if self.precision else out


class LayerNorm(nn.Module):
    """Layer norm that is not an ``nn.LayerNorm`` and casts its weights to bf16 for bf16 activations."""

    def __init__(self, c_in: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.c_in, self.eps = (c_in,), eps
        self.weight, self.bias = nn.Parameter(torch.ones(c_in)), nn.Parameter(torch.zeros(c_in))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if x.dtype == torch.bfloat16 else self.weight.dtype
        return nn.functional.layer_norm(x, self.c_in, self.weight.to(dtype), self.bias.to(dtype), self.eps)
