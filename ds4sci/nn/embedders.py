"""Input, relative-position, recycling and extra-MSA embedders (Algorithms 3, 4, 5, 32)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.kernels.tiles import add_in_parts
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards

TARGET_FEATURES, MSA_FEATURES, EXTRA_MSA_FEATURES = 22, 49, 25


def one_hot_product(index: Tensor, weight: Tensor) -> Tensor:
    """Product of the one-hot encoding of ``index`` and ``weight`` [classes, c], looked up. Index -1 is no class."""
    return F.embedding(index + 1, F.pad(weight, (0, 0, 1, 0)))


class OneHotLinear(Linear):
    """Linear layer of a one-hot encoding, computed as a table look-up. Index -1 belongs to no class."""

    def forward(self, index: Tensor) -> Tensor:
        return one_hot_product(index, self.weight.T) + self.bias


class InputEmbedder(nn.Module):
    """Algorithms 3 and 4: MSA features → m, target features and relative positions → z."""

    def __init__(self, c_m: int, c_z: int, max_relative: int = 32) -> None:
        super().__init__()
        self.max_relative = max_relative
        self.linear_tf_z_i = Linear(TARGET_FEATURES, c_z)
        self.linear_tf_z_j = Linear(TARGET_FEATURES, c_z)
        self.linear_tf_m = Linear(TARGET_FEATURES, c_m)
        self.linear_msa_m = Linear(MSA_FEATURES, c_m)
        self.linear_relpos = OneHotLinear(2 * max_relative + 1, c_z)

    def forward(
        self, aatype: Tensor, residue_index: Tensor, msa_feat: Tensor, shards: AxialShards = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """aatype, residue_index int64 [b, n], msa_feat [b, s, n, 49] → m [b, s, n, c_m], z [b, n, n, c_z].

        ``shards``: the features are whole, m and z are this rank's rows.
        """
        dtype = self.linear_tf_m.weight.dtype
        # the first of AlphaFold's 22 target features marks domain breaks, which a single chain does not have
        target = F.pad(F.one_hot(aatype, TARGET_FEATURES - 1), (1, 0)).to(dtype)
        offset = shards.own_residues(residue_index, 1).unsqueeze(-1) - residue_index.unsqueeze(-2)
        offset = offset.clamp(-self.max_relative, self.max_relative) + self.max_relative
        z = self.linear_tf_z_i(shards.own_residues(target, 1)).unsqueeze(-2) + self.linear_tf_z_j(target).unsqueeze(-3)
        if torch.is_grad_enabled() or z.dtype != self.linear_relpos.weight.dtype:  # autocast: the sum is wider
            z = z + self.linear_relpos(offset)
        else:
            add_in_parts(z, lambda rows: self.linear_relpos(offset[:, rows]), 1)
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
