"""Triangular multiplicative update (AlphaFold 2, Algorithms 11 and 12)."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.spec import reference_only
from ds4sci.kernels.triangle_multiplication.reference import Direction, Weights, reference

__all__ = ["KERNEL", "Direction", "Weights", "triangle_multiplication"]

KERNEL = reference_only("triangle_multiplication", reference)


def triangle_multiplication(
    z: Tensor,
    mask: Tensor | None,
    weights: Weights,
    direction: Direction,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """``g ⊙ W LN(Σ_k a_ik ⊙ b_jk)`` (outgoing) or ``Σ_k a_ki ⊙ b_kj`` (incoming); a, b gated projections of LN(z).

    z ``[b, n, n, c]``, ``mask`` bool or float ``[b, n, n]`` (True or 1 = both residues real; no gradient goes to it);
    returns the update ``[b, n, n, c]``. The norms are made in their parameters' dtype.

    Memory: the reference keeps about ``b·n²·(8 c' + 3 c)``.
    """
    return KERNEL(z, mask, weights, direction, eps=eps, implementation=implementation)
