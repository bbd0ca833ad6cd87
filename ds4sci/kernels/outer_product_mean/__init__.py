"""Outer product mean (AlphaFold 2, Algorithm 10): from the MSA to the pair representation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ds4sci.kernels.dtypes import why_not_mixed_dtypes
from ds4sci.kernels.input_checks import check_linear, check_shape, expand_mask
from ds4sci.kernels.outer_product_mean import fused, native
from ds4sci.kernels.outer_product_mean.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.outer_product_mean.reference import reference
from ds4sci.kernels.spec import Implementation, Kernel, runs_anywhere


def _fused(name: str) -> Callable[..., Tensor]:
    def run(
        a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, mask_b: Tensor | None = None,
        eps: float | None = 1e-3,
    ) -> Tensor:  # fmt: skip
        mask_b = None if mask_b is None else mask_b.detach()
        out: Tensor = fused.CUSTOM_OP(a, b, weight, bias, mask.detach(), mask_b, eps, name)
        return out

    return run


def _why_not_tiled(a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, *args: object, **kwargs: object) -> str | None:
    return why_not_mixed_dtypes(a, b, weight)


KERNEL = Kernel(
    "outer_product_mean",
    reference,
    (
        Implementation("native", _fused("native"), native.why_not),
        Implementation("tiled", _fused("tiled"), _why_not_tiled),
        Implementation("reference", reference, runs_anywhere),
    ),
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
    mask_b: Tensor | None = None,
    eps: float | None = 1e-3,
    implementation: str | None = None,
) -> Tensor:
    """``z_ij = (W flatten(Σ_s a_si ⊗ b_sj) + w₀) / (eps + Σ_s m_si m'_sj)``, summed over rows that neither masks.

    a ``[b, s, n_a, c]`` and b ``[b, s, n_b, c]`` projections of the MSA; ``mask`` (m) bool or float ``[b, s, n_a]`` and
    ``mask_b`` (m') ``[b, s, n_b]``, any dimension 1 to broadcast (they get no gradient); ``weight`` ``[c_z, c·c]``,
    ``bias`` ``[c_z]``; returns ``[b, n_a, n_b, c_z]``. Without ``mask_b`` both have the same residues: n_a = n_b and
    m' = m. A rank that holds some of the residues i passes those as a and all residues j as b. The bias is divided too,
    as in AlphaFold's code. ``eps=None`` divides by ``max(1, Σ_s m_si m'_sj)`` instead.

    implementation  ``native``     CPU with AVX2 or AVX-512: one call of C++; with at most c / 2 rows like tiled
                    ``tiled``      a few residues i at a time on any device, mostly matrix products; saves a and b
                    ``reference``  readable torch; saves ``b·n_a·n_b·c²``

    Raises ValueError for a mask or parameters whose shapes do not match a, and for a b or ``mask_b`` that does not
    match a except in n_b.
    """
    if a.dim() != 4:
        raise ValueError(f"a and b must be [b, s, n, c]; got a {tuple(a.shape)}")
    free = mask_b is not None and b.dim() == 4
    expected = (*a.shape[:2], b.shape[2], a.shape[3]) if free else a.shape
    check_shape("b", b, expected, a, "a")
    check_linear("output", (weight, bias), weight.shape[0] if weight.dim() else 1, a.shape[-1] ** 2, a, "a")
    mask = expand_mask(mask, a.shape[:3], a, "a")
    if mask_b is not None:
        mask_b = expand_mask(mask_b, b.shape[:3], b, "b", name="mask_b")
    return KERNEL(a, b, mask, weight, bias, mask_b=mask_b, eps=eps, implementation=implementation)
