"""Triangular multiplicative update (AlphaFold 2, Algorithms 11 and 12)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.spec import reference_only

Direction = Literal["outgoing", "incoming"]


class Weights(NamedTuple):
    """Parameters of the update; c channels of the pair representation, c' hidden ones. Weights are [out, in]."""

    norm_in: tuple[Tensor, Tensor]
    a_p: tuple[Tensor, Tensor]
    a_g: tuple[Tensor, Tensor]
    b_p: tuple[Tensor, Tensor]
    b_g: tuple[Tensor, Tensor]
    norm_out: tuple[Tensor, Tensor]
    z: tuple[Tensor, Tensor]
    g: tuple[Tensor, Tensor]


def reference(z: Tensor, mask: Tensor, weights: Weights, direction: Direction) -> Tensor:
    z = F.layer_norm(z, z.shape[-1:], *weights.norm_in)
    # one product for the four projections and one gated unit for both gates: the same numbers in fewer passes over z
    names = (weights.a_p, weights.b_p, weights.a_g, weights.b_g)
    joint = F.linear(z, torch.cat([w for w, _ in names]), torch.cat([b for _, b in names]))
    a, b = (F.glu(joint, dim=-1) * mask.to(z.dtype).unsqueeze(-1)).chunk(2, dim=-1)
    equation = "bikc,bjkc->bijc" if direction == "outgoing" else "bkic,bkjc->bijc"
    product = F.layer_norm(torch.einsum(equation, a, b), a.shape[-1:], *weights.norm_out)
    return F.linear(product, *weights.z) * torch.sigmoid(F.linear(z, *weights.g))


KERNEL = reference_only("triangle_multiplication", reference)


def triangle_multiplication(
    z: Tensor, mask: Tensor, weights: Weights, direction: Direction, *, implementation: str | None = None
) -> Tensor:
    """``g ⊙ W LN(Σ_k a_ik ⊙ b_jk)`` (outgoing) or ``Σ_k a_ki ⊙ b_kj`` (incoming); a, b gated projections of LN(z).

    z ``[b, n, n, c]``, ``mask`` bool ``[b, n, n]`` (True = both residues real); returns the update ``[b, n, n, c]``.
    Memory: the reference keeps about ``b·n²·(6 c' + 3 c)``.
    """
    return KERNEL(z, mask, weights, direction, implementation=implementation)
