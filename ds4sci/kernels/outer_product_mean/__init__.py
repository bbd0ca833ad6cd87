"""Outer product mean (AlphaFold 2, Algorithm 10): from the MSA to the pair representation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.spec import reference_only


def reference(a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-3) -> Tensor:
    keep = mask.to(a.dtype)
    a, b = a * keep.unsqueeze(-1), b * keep.unsqueeze(-1)
    count = torch.einsum("bsi,bsj->bij", keep, keep).unsqueeze(-1)
    rows, c = a.shape[1], a.shape[-1]
    if rows < c:
        # few rows: weight first, so that nothing of c·c channels per pair is made
        weighted = torch.einsum("bsic,zcd->bizsd", a, weight.unflatten(1, (c, c)))
        product = torch.einsum("bizsd,bsjd->bijz", weighted, b) + bias
    else:
        product = F.linear(torch.einsum("bsic,bsjd->bijcd", a, b).flatten(-2), weight, bias)
    return product / (eps + count)


KERNEL = reference_only("outer_product_mean", reference)


def outer_product_mean(
    a: Tensor,
    b: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-3,
    implementation: str | None = None,
) -> Tensor:
    """``z_ij = (W flatten(Σ_s a_si ⊗ b_sj) + w₀) / (eps + Σ_s m_si m_sj)``, the sums over rows that ``mask`` keeps.

    a and b ``[b, s, n, c]`` projections of the MSA, ``mask`` bool ``[b, s, n]``, ``weight`` ``[c_z, c·c]``, ``bias``
    ``[c_z]``; returns ``[b, n, n, c_z]``. The bias is divided too, as in AlphaFold's code.
    Memory: the reference keeps ``b·n·n·c²``, with fewer rows than channels ``b·n·s·c·c_z``.
    """
    return KERNEL(a, b, mask, weight, bias, eps=eps, implementation=implementation)
