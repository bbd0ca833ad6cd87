"""Transition: layer norm and a two-layer MLP, with ReLU (AlphaFold 2, Algorithms 9, 15) or SwiGLU (AlphaFold 3, 11)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.dtypes import why_not_mixed_dtypes
from ds4sci.kernels.input_checks import check_linear, check_norm
from ds4sci.kernels.pointwise import implementations
from ds4sci.kernels.spec import Kernel
from ds4sci.kernels.transition import fused
from ds4sci.kernels.transition.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.transition.reference import Activation, reference


def _fused(name: str) -> Callable[..., Tensor]:
    def run(
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
        out: Tensor = fused.CUSTOM_OP(
            x, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, activation, eps, name
        )
        return out

    return run


def _why_not(
    _: str, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight_1: Tensor, bias_1: Tensor | None,
    weight_2: Tensor, *args: object, **kwargs: object,
) -> str | None:  # fmt: skip
    return why_not_mixed_dtypes(x, weight_1, weight_2)


KERNEL = Kernel("transition", reference, implementations(_fused, reference, _why_not), CASES, SIZE_SWEEPS)


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
    [..., c]. Without ``norm_weight`` there is no layer norm; the layer norm uses the dtype of its parameters.

    implementation  ``triton``, ``native``, ``tiled``  one tile of rows at a time; saves only x, never materializes the
                                                   [..., f·c] hidden activation
                    ``reference``                  readable torch; saves the hidden activation several times

    Raises ValueError for parameters whose shapes do not match x and each other.
    """
    c = x.shape[-1]
    hidden = weight_2.shape[-1]
    check_norm("norm", (norm_weight, norm_bias), c, x, "x")
    check_linear("first layer's", (weight_1, bias_1), hidden * (2 if activation == "swiglu" else 1), c, x, "x")
    check_linear("second layer's", (weight_2, bias_2), c, hidden, x, "x")
    return KERNEL(
        x, norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2, activation=activation, eps=eps,
        implementation=implementation,
    )  # fmt: skip
