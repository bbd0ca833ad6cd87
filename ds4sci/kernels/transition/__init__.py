"""Transition: layer norm, then a two-layer ReLU MLP (AlphaFold 2, Algorithms 9 and 15)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.spec import reference_only


def reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
) -> Tensor:
    hidden = F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias), weight_1, bias_1).relu()
    return F.linear(hidden, weight_2, bias_2)


KERNEL = reference_only("transition", reference)


def transition(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    *,
    implementation: str | None = None,
) -> Tensor:
    """``W₂ relu(W₁ LN(x) + b₁) + b₂`` for ``x`` [..., c]; ``weight_1`` [f·c, c], ``weight_2`` [c, f·c].

    Memory: the reference keeps the [..., f·c] hidden activation.
    """
    return KERNEL(x, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, implementation=implementation)
