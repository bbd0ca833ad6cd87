"""Outer product mean of an MSA that is sharded over ranks (Algorithm 10).

Each rank computes its rows of the pair representation, from a of its residues and b of all residues. The projection b
is gathered in forward and again in backward, so that only this rank's part is saved. Elements sent by each rank, for s
MSA rows, n residues and c channels, even parts, as many in forward as in backward except where noted:

    a, from rows to columns (only if the MSA is sharded by rows)    s · n · c / P · (P − 1)/P
    b, gathered; twice in backward (b again, and its gradient)      s · n · c · (P − 1)/P
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds4sci.kernels.outer_product_mean import KERNEL, outer_product_mean
from ds4sci.kernels.outer_product_mean.fused import CUSTOM_OP
from ds4sci.parallel.axial import AxialShards, Ranges, all_gather, reduce_scatter

EPS = 1e-3
"""Added to the number of rows, as in AlphaFold."""


def axial_outer_product_mean(
    a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, shards: AxialShards, *, by_columns: bool
) -> Tensor:
    """``outer_product_mean`` of a and b ``[b, s, n, c]``, this rank's rows or, if ``by_columns``, columns.

    ``mask`` bool [b, s, n] is whole. Returns this rank's rows of the update, ``[b, r, n, c_z]``. Collective over
    ``shards.group``. Raises ValueError like ``outer_product_mean``.
    """
    dim, ranges = (2, shards.residues) if by_columns else (1, shards.msa)
    a = a if by_columns else shards.msa_to_columns(a)
    own_mask = shards.own_residues(mask, 2)
    implementation = KERNEL.select(a, b, own_mask, weight, bias, mask_b=mask, eps=EPS).name
    if implementation == "reference":
        whole = shards.gather_residues(b, 2) if by_columns else shards.gather_msa(b, 1)
        return outer_product_mean(a, whole, own_mask, weight, bias, mask_b=mask, eps=EPS)
    out: Tensor = _AxialOuterProduct.apply(a, b, weight, bias, own_mask, mask, implementation, dim, ranges, shards)
    return out


class _AxialOuterProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, mask_b: Tensor,
        implementation: str, dim: int, ranges: Ranges, shards: AxialShards,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(a, b, weight, bias, mask, mask_b)
        ctx.of = dim, ranges, shards.group
        ctx.implementation = implementation
        out: Tensor = CUSTOM_OP(a, all_gather(b, *ctx.of), weight, bias, mask, mask_b, EPS, implementation)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        a, b, *others = ctx.saved_tensors
        needs_grad = [True, True, *ctx.needs_input_grad[2:4], False, False]
        made = torch.ops.ds4sci.outer_product_mean_backward(
            grad, a, all_gather(b, *ctx.of), *others, EPS, ctx.implementation, needs_grad
        )
        grad_weight, grad_bias = (g if needed else None for g, needed in zip(made[2:4], needs_grad[2:4], strict=True))
        return made[0], reduce_scatter(made[1], *ctx.of), grad_weight, grad_bias, *(None,) * 6
