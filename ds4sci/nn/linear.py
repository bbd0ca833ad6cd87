"""Linear layer and layer norm with AlphaFold's initialization (supplement 1.11.4), and the cast to fp32 or wider."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ds4sci.kernels import layer_norm

Init = Literal["lecun", "relu", "glorot", "gating", "zero"]


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or unchanged in fp64."""
    return x if x.dtype == torch.float64 else x.float()


class Linear(nn.Linear):
    """``nn.Linear`` with AlphaFold's initializations.

    lecun: truncated normal, variance 1/fan-in (default) · relu: variance 2/fan-in · glorot: uniform ·
    gating: weight 0, bias 1 (gate open) · zero: all 0, for the last layer of a residual branch.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool = True, init: Init = "lecun") -> None:
        self.init = init
        super().__init__(c_in, c_out, bias=bias)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            if self.bias is not None:
                self.bias.fill_(1.0 if self.init == "gating" else 0.0)
            if self.init in ("gating", "zero"):
                self.weight.zero_()
            elif self.init == "glorot":
                nn.init.xavier_uniform_(self.weight)
            else:
                # a normal distribution truncated at two standard deviations has 0.8796 of its standard deviation
                std = math.sqrt((2.0 if self.init == "relu" else 1.0) / self.in_features) / 0.87962566103423978
                nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)


class LayerNorm(nn.Module):
    """Layer norm over the last axis by ``kernels.layer_norm``."""

    def __init__(self, c: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))
        self.bias = nn.Parameter(torch.zeros(c))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)
