"""Pair updates and transitions of the Evoformer block: outer product mean, triangle multiplication, dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds4sci.kernels import outer_product_mean, shared_dropout, transition, triangle_multiplication
from ds4sci.kernels.tiles import add_in_parts
from ds4sci.kernels.triangle_multiplication import Direction, Weights
from ds4sci.kernels.triangle_multiplication.by_channels import add_triangle_multiplication
from ds4sci.nn.axial_multiplication import axial_triangle_multiplication
from ds4sci.nn.axial_outer_product import axial_outer_product_mean
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards


class OuterProductMean(nn.Module):
    """Algorithm 10: MSA [b, s, n, c_m] → pair update [b, n, n, c_z] through c × c outer products."""

    reads_parameters_of_children = True

    def __init__(self, c_m: int, c_z: int, c: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c_m)
        self.linear_1 = Linear(c_m, c)
        self.linear_2 = Linear(c_m, c)
        self.linear_out = Linear(c * c, c_z, init="zero")

    def forward(
        self, m: Tensor, mask: Tensor, shards: AxialShards = WHOLE, *, by_columns: bool = False,
        add_to: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """m [b, s, n, c_m], mask bool [b, s, n] → update of z [b, n, n, c_z].

        shards      m has this rank's rows, or its columns if ``by_columns``; the mask has all. Returns this rank's rows
                    of the update. Gathers the projection b; rows of a are exchanged for columns
        add_to      z, which the update is added to in place; returns z. Without gradient, and without shards
        """
        m = self.layer_norm(m)
        a, b = self.linear_1(m), self.linear_2(m)
        weight, bias = self.linear_out.weight, self.linear_out.bias
        if shards.group.size > 1:
            return axial_outer_product_mean(a, b, mask, weight, bias, shards, by_columns=by_columns)
        if add_to is None:
            return outer_product_mean(a, b, mask, weight, bias)
        return add_in_parts(
            add_to,
            lambda rows: outer_product_mean(a[:, :, rows], b, mask[:, :, rows], weight, bias, mask_b=mask),
            1,
        )


class TriangleMultiplication(nn.Module):
    """Algorithms 11 (outgoing edges) and 12 (incoming edges), ``c`` hidden channels."""

    reads_parameters_of_children = True

    def __init__(self, c_z: int, c: int, direction: Direction) -> None:
        super().__init__()
        self.direction = direction
        self.layer_norm_in = LayerNorm(c_z)
        self.linear_a_p = Linear(c_z, c)
        self.linear_a_g = Linear(c_z, c, init="gating")
        self.linear_b_p = Linear(c_z, c)
        self.linear_b_g = Linear(c_z, c, init="gating")
        self.layer_norm_out = LayerNorm(c)
        self.linear_z = Linear(c, c_z, init="zero")
        self.linear_g = Linear(c_z, c_z, init="gating")

    def forward(self, z: Tensor, mask: Tensor, shards: AxialShards = WHOLE, *, in_place: bool = False) -> Tensor:
        """z [b, n, n, c_z], mask bool [b, n, n] → update of z. ``shards``: z has this rank's rows, the mask has all.

        ``in_place``: add the update to z, and return z.
        """
        weights = Weights(
            *(
                (layer.weight, layer.bias)
                for layer in (
                    self.layer_norm_in, self.linear_a_p, self.linear_a_g, self.linear_b_p, self.linear_b_g,
                    self.layer_norm_out, self.linear_z, self.linear_g,
                )
            )
        )  # fmt: skip
        if shards.group.size > 1:
            return axial_triangle_multiplication(z, shards.own_residues(mask, 1), weights, self.direction, shards)
        run = add_triangle_multiplication if in_place else triangle_multiplication
        return run(z, mask, weights, self.direction)


class Transition(nn.Module):
    """Algorithms 9 and 15: layer norm and a ReLU MLP whose hidden layer is ``factor`` times wider."""

    reads_parameters_of_children = True

    def __init__(self, c: int, factor: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c)
        self.linear_1 = Linear(c, factor * c, init="relu")
        self.linear_2 = Linear(factor * c, c, init="zero")

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """x [b, i, j, c] → update of x. ``in_place``: add it to x, and return x."""
        weights = (
            self.layer_norm.weight, self.layer_norm.bias,
            self.linear_1.weight, self.linear_1.bias, self.linear_2.weight, self.linear_2.bias,
        )  # fmt: skip
        if not in_place:
            return transition(x, *weights)
        return add_in_parts(x, lambda rows: transition(x[:, rows], *weights), 1)


class Convolution(nn.Module):
    """Depthwise convolution along the residues of each MSA row, for small models (not in AlphaFold).

    ``y = W₂ (relu(W₁ LN(m)) ⋆ k)``, kernel ``width`` (odd).
    """

    def __init__(self, c_m: int, width: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c_m)
        self.linear_1 = Linear(c_m, c_m, init="relu")
        self.convolution = nn.Conv1d(c_m, c_m, width, padding=width // 2, groups=c_m)
        self.linear_2 = Linear(c_m, c_m, init="zero")

    def forward(self, m: Tensor, mask: Tensor, *, in_place: bool = False) -> Tensor:
        """m [b, s, n, c_m], mask bool [b, s, n] → update of m. Padding counts as zero.

        ``in_place``: add the update to m, and return m.
        """
        if not in_place:
            return self._update(m, mask)
        return add_in_parts(m, lambda rows: self._update(m[:, rows], mask[:, rows]), 1)

    def _update(self, m: Tensor, mask: Tensor) -> Tensor:
        hidden = self.linear_1(self.layer_norm(m)).relu() * mask.unsqueeze(-1)
        b, s = m.shape[:2]
        mixed = self.convolution(hidden.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
        return self.linear_2(mixed.unflatten(0, (b, s)))


class SharedDropout(nn.Module):
    """Dropout whose mask is shared along one axis (supplement 1.11.6): ``axis`` 1 = row-wise, 2 = column-wise.

    The seed comes from torch's CPU generator, which activation checkpointing restores before the recomputation.
    """

    def __init__(self, p: float, axis: int) -> None:
        super().__init__()
        self.p, self.axis = p, axis

    def forward(self, x: Tensor, first_row: int = 0) -> Tensor:
        """x [b, i, j, c]; ``first_row``: index i of its first row, where x is a part of a representation.

        Ranks that share a representation need the same state of the generator.
        """
        if not self.training or self.p == 0.0:
            return x
        return shared_dropout(x, self.p, self.axis, torch.randint(2**62, ()), starts=(0, first_row, 0))
