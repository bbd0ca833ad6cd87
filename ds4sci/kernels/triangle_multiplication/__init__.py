"""Triangular multiplicative update (AlphaFold 2, Algorithms 11 and 12)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.dtypes import why_not_mixed_dtypes
from ds4sci.kernels.input_checks import check_linear, check_norm, expand_mask
from ds4sci.kernels.pointwise import implementations
from ds4sci.kernels.saved_projections import take
from ds4sci.kernels.spec import Kernel
from ds4sci.kernels.tiles import concat_linears
from ds4sci.kernels.triangle_multiplication import fused
from ds4sci.kernels.triangle_multiplication.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.triangle_multiplication.reference import Direction, Weights, reference

__all__ = ["KERNEL", "Direction", "Weights", "triangle_multiplication"]


def joint_parameters(w: Weights) -> tuple[Tensor | None, ...]:
    """The parameters of ``fused.Update``: the four projections as one."""
    return *w.norm_in, *concat_linears(w.a_p, w.b_p, w.a_g, w.b_g), *w.norm_out, *w.z, *w.g


def _fused(name: str) -> Callable[..., Tensor]:
    def run(z: Tensor, mask: Tensor | None, weights: Weights, direction: Direction, *, eps: float = 1e-5) -> Tensor:
        keep = None if mask is None else mask.detach()
        saves = take(fused.channels_bytes(z, 2 * len(z) * len(weights.a_p[0])))
        out: Tensor = fused.CUSTOM_OP(z, *joint_parameters(weights), keep, direction, eps, name, saves)[0]
        return out

    return run


def _why_not(_: str, z: Tensor, mask: Tensor | None, weights: Weights, *args: object, **kwargs: object) -> str | None:
    w = weights
    return why_not_mixed_dtypes(z, *(layer[0] for layer in (w.a_p, w.b_p, w.a_g, w.b_g, w.z, w.g)))


KERNEL = Kernel("triangle_multiplication", reference, implementations(_fused, reference, _why_not), CASES, SIZE_SWEEPS)


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

    z ``[b, n, n, c]``, ``mask`` bool or float ``[b, n, n]`` (True or 1 = both residues real; no gradient goes to it),
    or a shape that broadcasts to it. Returns the update ``[b, n, n, c]``. The layer norms use the dtype of their
    parameters.

    implementation  ``triton``, ``native``, ``tiled``  the contraction as matrix products, everything else in tiles;
                                                   saves z and the result of the contraction ``b·n²·c'``; within
                                                   ``saved_projections.allowance`` also a and b
                    ``reference``                  readable torch; saves about ``b·n²·(8 c' + 3 c)``

    Raises ValueError for a mask or parameters whose shapes do not match z and each other.
    """
    if z.dim() != 4 or z.shape[1] != z.shape[2]:
        raise ValueError(f"z must be [b, n, n, c]; got {tuple(z.shape)}")
    mask = check_arguments(z, mask, weights)
    return KERNEL(z, mask, weights, direction, eps=eps, implementation=implementation)


def check_arguments(z: Tensor, mask: Tensor | None, weights: Weights) -> Tensor | None:
    """Check the shapes of mask and parameters against z ``[b, i, k, c]``; return the mask as ``[b, i, k]``.

    Raises ValueError.
    """
    w, c = weights, z.shape[-1]
    hidden = w.a_p[0].shape[0]
    for name, norm, channels in (("norm_in", w.norm_in, c), ("norm_out", w.norm_out, hidden)):
        check_norm(name, norm, channels, z, "z")
    for name, layer in (("a_p", w.a_p), ("a_g", w.a_g), ("b_p", w.b_p), ("b_g", w.b_g)):
        check_linear(name, layer, hidden, c, z, "z")
    check_linear("z", w.z, c, hidden, z, "z")
    check_linear("g", w.g, c, c, z, "z")
    return None if mask is None else expand_mask(mask, z.shape[:3], z, "z", fewer_dimensions=True)
