"""Outer product mean (AlphaFold 2, Algorithm 10): from the MSA to the pair representation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.input_checks import check_linear, check_shape, expand_mask
from ds4sci.kernels.outer_product_mean import fused
from ds4sci.kernels.outer_product_mean.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.outer_product_mean.reference import reference
from ds4sci.kernels.spec import Implementation, Kernel, runs_anywhere


def _fused(name: str) -> Callable[..., Tensor]:
    def run(
        a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float | None = 1e-3
    ) -> Tensor:
        out: Tensor = fused.CUSTOM_OP(a, b, weight, bias, mask.detach(), eps, name)
        return out

    return run


KERNEL = Kernel(
    "outer_product_mean",
    reference,
    (Implementation("tiled", _fused("tiled"), runs_anywhere), Implementation("reference", reference, runs_anywhere)),
    CASES,
    SIZE_SWEEPS,
)


def outer_product_mean(
    a: Tensor,
    b: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float | None = 1e-3,
    implementation: str | None = None,
) -> Tensor:
    """``z_ij = (W flatten(Σ_s a_si ⊗ b_sj) + w₀) / (eps + Σ_s m_si m_sj)``, summed over unmasked rows.

    a and b ``[b, s, n, c]`` projections of the MSA, ``mask`` bool or float ``[b, s, n]``, any of them 1 to
    broadcast (it gets no gradient), ``weight`` ``[c_z, c·c]``, ``bias`` ``[c_z]``; returns ``[b, n, n, c_z]``. The bias
    is divided too, as in AlphaFold's code. ``eps=None`` divides by ``max(1, Σ_s m_si m_sj)`` instead.

    implementation  ``tiled``      a few residues i at a time on any device, mostly matrix products; saves a and b
                    ``reference``  readable torch; saves ``b·n·n·c²``

    Raises ValueError for a mask or parameters whose shapes do not match a, and for a b of another shape.
    """
    if a.dim() != 4:
        raise ValueError(f"a and b must be [b, s, n, c]; got a {tuple(a.shape)}")
    check_shape("b", b, a.shape, a, "a")
    check_linear("output", (weight, bias), weight.shape[0] if weight.dim() else 1, a.shape[-1] ** 2, a, "a")
    mask = expand_mask(mask, a.shape[:3], a, "a")
    return KERNEL(a, b, mask, weight, bias, eps=eps, implementation=implementation)
