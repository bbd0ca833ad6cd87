"""Transition: layer norm, then a two-layer MLP with ReLU (AlphaFold 2, Algorithms 9 and 15) or SwiGLU (AlphaFold 3, 11)."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.spec import reference_only
from ds4sci.kernels.transition.reference import Activation, reference

KERNEL = reference_only("transition", reference)


def transition(
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
    implementation: str | None = None,
) -> Tensor:
    """``W₂ relu(W₁ LN(x) + b₁) + b₂``, or ``W₂ (silu(u) ⊙ v) + b₂`` with ``[u, v] = W₁ LN(x) + b₁`` (``swiglu``).

    x [..., c]; ``weight_1`` [f·c, c], for swiglu [2·f·c, c] with the gate's rows first; ``weight_2`` [c, f·c]; returns
    [..., c]. Without ``norm_weight`` there is no layer norm. The norm is made in its parameters' dtype.

    Memory: the reference keeps the [..., f·c] hidden activation, several times.
    """
    return KERNEL(
        x, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, activation=activation, eps=eps,
        implementation=implementation,
    )  # fmt: skip
