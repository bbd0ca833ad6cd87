"""Pair bias of attention: one number per head and pair (AlphaFold 2, Algorithms 7, 13 and 14, line 3)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.dtypes import why_not_mixed_dtypes
from ds4sci.kernels.input_checks import check_norm, check_shape
from ds4sci.kernels.pair_bias import fused
from ds4sci.kernels.pair_bias.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.pair_bias.reference import reference
from ds4sci.kernels.pointwise import implementations
from ds4sci.kernels.spec import Kernel


def _fused(name: str) -> Callable[..., Tensor]:
    def run(
        z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, *, eps: float = 1e-5
    ) -> Tensor:
        out: Tensor = fused.CUSTOM_OP(z, norm_weight, norm_bias, weight, eps, name)
        return out

    return run


def _why_not(
    _: str, z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, **kwargs: object
) -> str | None:
    return why_not_mixed_dtypes(z, weight)


KERNEL = Kernel("pair_bias", reference, implementations(_fused, reference, _why_not), CASES, SIZE_SWEEPS)


def pair_bias(
    z: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``W LN(z)`` with heads first: z ``[b, q, k, c]``, ``weight`` ``[h, c]`` → ``[b, h, q, k]``.

    Without ``norm_weight`` there is no layer norm; the layer norm uses the dtype of its parameters.

    implementation  ``triton``, ``native``, ``tiled``  one tile of pairs at a time; saves only z
                    ``reference``                  readable torch; saves z twice

    Raises ValueError for a z without four dimensions, and for parameters whose shapes do not match it.
    """
    if z.dim() != 4:
        raise ValueError(f"z must be [b, q, k, c]; got {tuple(z.shape)}")
    c = z.shape[-1]
    check_norm("norm", (norm_weight, norm_bias), c, z, "z")
    check_shape("weight", weight, (weight.shape[0] if weight.dim() else 1, c), z, "z")
    return KERNEL(z, norm_weight, norm_bias, weight, eps=eps, implementation=implementation)
