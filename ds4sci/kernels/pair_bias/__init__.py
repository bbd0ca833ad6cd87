"""The pair bias of an attention (AlphaFold 2, Algorithm 7, line 3; 13 and 14, line 3): a number per head for every pair."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.pair_bias.reference import reference
from ds4sci.kernels.spec import reference_only

KERNEL = reference_only("pair_bias", reference)


def pair_bias(
    z: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``W LN(z)`` with the heads in front: z ``[b, q, k, c]``, ``weight`` ``[h, c]`` → ``[b, h, q, k]``.

    Without ``norm_weight`` there is no layer norm. The norm is made in its parameters' dtype.

    Memory: the reference keeps z twice.
    """
    return KERNEL(z, norm_weight, norm_bias, weight, eps=eps, implementation=implementation)
