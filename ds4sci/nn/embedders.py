"""Input, relative-position, recycling and extra-MSA embedders (Algorithms 3, 4, 5, 32), of chains and of complexes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.kernels.tiles import add_in_parts
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards

MSA_FEATURES, EXTRA_MSA_FEATURES = 49, 25
RESIDUE_TYPES = 21
"""Amino acids and X."""

Kind = Literal["monomer", "multimer"]
"""AlphaFold 2, or AlphaFold-Multimer."""


def one_hot_product(index: Tensor, weight: Tensor) -> Tensor:
    """Product of the one-hot encoding of ``index`` and ``weight`` [classes, c], looked up. Index -1 is no class."""
    return F.embedding(index + 1, F.pad(weight, (0, 0, 1, 0)))


class OneHotLinear(Linear):
    """Linear layer of a one-hot encoding, computed as a table look-up. Index -1 belongs to no class."""

    def forward(self, index: Tensor) -> Tensor:
        return one_hot_product(index, self.weight.T) + self.bias


class Residues(NamedTuple):
    """Places of residues in a complex, int64 [b, n] each: position in the chain, and the numbers of ``ChainIds``."""

    position: Tensor
    asym_id: Tensor
    entity_id: Tensor
    sym_id: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Residues:
        """Return ``function`` of each tensor."""
        return Residues(*map(function, self))


class RelativePositions(OneHotLinear):
    """Algorithm 4: a vector for each difference of the positions of two residues, clamped to ±``max_relative``."""

    def __init__(self, c_z: int, max_relative: int = 32) -> None:
        super().__init__(2 * max_relative + 1, c_z)
        self.max_relative = max_relative

    def forward(self, rows: Residues, columns: Residues) -> Tensor:  # type: ignore[override]
        """Residues [b, n_r] and [b, n] → [b, n_r, n, c_z]. The numbers of chains are not read."""
        return super().forward(clamped_difference(rows.position, columns.position, self.max_relative))


class ChainRelativePositions(Linear):
    """Relative positions of residues and chains (AlphaFold-Multimer, section 2 and Algorithm 4 of its supplement).

    The 73 features are the difference of positions in a chain (65) or "another chain" (1), whether the sequences are
    equal (1), and the difference of the chain numbers within the entity (5) or "another entity" (1).
    """

    def __init__(self, c_z: int, max_relative: int = 32, max_chain: int = 2) -> None:
        self.sizes = 2 * max_relative + 2, 1, 2 * max_chain + 2
        super().__init__(sum(self.sizes), c_z)
        self.max_relative, self.max_chain = max_relative, max_chain

    def forward(self, rows: Residues, columns: Residues) -> Tensor:  # type: ignore[override]
        """Residues [b, n_r] and [b, n] → [b, n_r, n, c_z]."""
        of_offset, of_entity, of_chain = self.weight.T.split(self.sizes)
        same_chain, same_entity = (
            x.unsqueeze(-1) == y.unsqueeze(-2)
            for x, y in ((rows.asym_id, columns.asym_id), (rows.entity_id, columns.entity_id))
        )
        offset = clamped_difference(rows.position, columns.position, self.max_relative)
        chain = clamped_difference(rows.sym_id, columns.sym_id, self.max_chain)
        offset = torch.where(same_chain, offset, 2 * self.max_relative + 1)
        chain = torch.where(same_entity, chain, 2 * self.max_chain + 1)
        # a table of all pairs of chain and entity features is small: 6 vectors for the same entity, 1 for another
        of_chain = of_chain + self.bias + F.pad(of_entity.expand(self.sizes[2] - 1, -1), (0, 0, 0, 1))
        return F.embedding(offset, of_offset) + F.embedding(chain, of_chain)


def clamped_difference(rows: Tensor, columns: Tensor, limit: int) -> Tensor:
    """Differences of int64 [b, n_r] and [b, n], clamped to ±``limit``, counted from 0: [b, n_r, n]."""
    return (rows.unsqueeze(-1) - columns.unsqueeze(-2)).clamp(-limit, limit) + limit


class InputEmbedder(nn.Module):
    """Algorithms 3 and 4: MSA features → m, target features and relative positions → z."""

    def __init__(self, c_m: int, c_z: int, kind: Kind = "monomer") -> None:
        super().__init__()
        # the first of AlphaFold's 22 target features marks domain breaks, which a single chain does not have
        self.unused_features = 1 if kind == "monomer" else 0
        features = RESIDUE_TYPES + self.unused_features
        self.linear_tf_z_i = Linear(features, c_z)
        self.linear_tf_z_j = Linear(features, c_z)
        self.linear_tf_m = Linear(features, c_m)
        self.linear_msa_m = Linear(MSA_FEATURES, c_m)
        self.linear_relpos = RelativePositions(c_z) if kind == "monomer" else ChainRelativePositions(c_z)

    def forward(
        self, aatype: Tensor, residues: Residues, msa_feat: Tensor, shards: AxialShards = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """aatype int64 [b, n], residues [b, n], msa_feat [b, s, n, 49] → m [b, s, n, c_m], z [b, n, n, c_z].

        ``shards``: the features are whole, m and z are this rank's rows.
        """
        dtype = self.linear_tf_m.weight.dtype
        target = F.pad(F.one_hot(aatype, RESIDUE_TYPES), (self.unused_features, 0)).to(dtype)
        own = residues.map(lambda x: shards.own_residues(x, 1))
        z = self.linear_tf_z_i(shards.own_residues(target, 1)).unsqueeze(-2) + self.linear_tf_z_j(target).unsqueeze(-3)
        if torch.is_grad_enabled() or z.dtype != self.linear_relpos.weight.dtype:  # autocast: the sum is wider
            z = z + self.linear_relpos(own, residues)
        else:
            add_in_parts(z, lambda rows: self.linear_relpos(own.map(lambda x: x[:, rows]), residues), 1)
        m = self.linear_msa_m(shards.own_msa(msa_feat, 1).to(dtype)) + self.linear_tf_m(target).unsqueeze(-3)
        return m, z


class RecyclingEmbedder(nn.Module):
    """Algorithm 32: first MSA row, pair representation and Cβ distances of the previous pass, embedded as updates."""

    def __init__(self, c_m: int, c_z: int, bins: int = 15, first: float = 3.25, last: float = 20.75) -> None:
        super().__init__()
        self.c_m, self.c_z = c_m, c_z
        self.linear = OneHotLinear(bins, c_z)
        self.layer_norm_m = LayerNorm(c_m)
        self.layer_norm_z = LayerNorm(c_z)
        self.bins, self.first, self.last = bins, first, last

    def forward(
        self, previous: Sequence[Tensor] | None, shards: AxialShards = WHOLE, *,
        add_to: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(m0 [b, n, c_m], z [b, n, n, c_z], beta [b, n, 3] Å) → updates of the first MSA row and of z.

        None stands for the first pass: the embedding of zeros (line 3), as [1, 1, c_m] and [1, 1, 1, c_z].
        ``shards``: z and its update are this rank's rows. ``add_to``: the z of this pass, which its update is added to
        in place, without gradient; it is returned in place of the update.
        """
        if previous is None:
            like = self.layer_norm_m.weight
            beta = torch.zeros(1, 1, 3, device=like.device)  # distances are fp32 for any dtype of weights
            previous = like.new_zeros(1, 1, self.c_m), like.new_zeros(1, 1, 1, self.c_z), beta
            shards = WHOLE  # one row, which broadcasts to those of any rank
        m0, z, beta = previous
        edges = torch.linspace(self.first, self.last, self.bins, device=beta.device, dtype=beta.dtype)
        # all distances: those of some rows alone would round differently, and a bin is a step function
        distance = shards.own_residues(torch.cdist(beta, beta), 1)
        index = torch.bucketize(distance, edges) - 1  # -1 below the first edge: no bin, as in AlphaFold
        m0 = self.layer_norm_m(m0)
        if add_to is None:
            return m0, self.layer_norm_z(z) + self.linear(index)

        def update(rows: slice) -> Tensor:
            own = rows if z.shape[1] > 1 else slice(None)
            return self.layer_norm_z(z[:, own]) + self.linear(index[:, own])

        return m0, add_in_parts(add_to, update, 1)


class ExtraMSAEmbedder(nn.Module):
    """Algorithm 2, line 15: extra MSA features [b, e, n, 25] → [b, e, n, c_e]."""

    def __init__(self, c_e: int) -> None:
        super().__init__()
        self.linear = Linear(EXTRA_MSA_FEATURES, c_e)

    def forward(self, extra_msa_feat: Tensor) -> Tensor:
        return self.linear(extra_msa_feat.to(self.linear.weight.dtype))
