"""Template embedder of AlphaFold-Multimer: templates of single chains as input of a complex.

It differs from that of AlphaFold 2 (``ds4sci.nn.template``) in that a template sees the pair representation, its
distances between chains are masked, and the templates are averaged in place of an attention over them. Source:
AlphaFold's published code (``modules_multimer.py``), whose features and order of updates it has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.geometry import torsion_mask, torsions_of_atoms
from ds4sci.kernels.tiles import add_in_parts
from ds4sci.nn.embedders import one_hot_product
from ds4sci.nn.evoformer import PairUpdate
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.nn.template import (
    DISTANCE_BINS,
    RESIDUE_TYPES,
    PairStack,
    TemplateAngleEmbedder,
    Templates,
    distance_bins,
    pairs_of,
    residue_type,
    template_geometry,
    unit_vectors,
)
from ds4sci.parallel.axial import WHOLE, AxialShards

CHI_FEATURES = 34

PAIR_UPDATES: tuple[PairUpdate, ...] = (
    "multiplication_outgoing",
    "multiplication_incoming",
    "attention_starting",
    "attention_ending",
    "transition",
)
"""Updates of a block of the pair stack, in order."""


def template_chi(templates: Templates) -> Tensor:
    """Features [b, t, n, 34]: residue type (22), sine (4) and cosine (4) of χ angles, and their mask (4)."""
    aatype, positions = residue_type(templates.aatype), templates.positions
    mask = torsion_mask(templates.atom_mask, aatype)[..., 3:]
    angles = torsions_of_atoms(positions, aatype)[..., 3:, :] * mask.unsqueeze(-1)
    sin, cos = angles.unbind(-1)
    parts = F.one_hot(templates.aatype, RESIDUE_TYPES), sin, cos, mask
    return torch.cat([part.to(positions.dtype) for part in parts], dim=-1)


class MultimerTemplatePairEmbedder(nn.Module):
    """Linear layers of the pair features of a template, each with a bias."""

    reads_parameters_of_children = True

    def __init__(self, c_t: int) -> None:
        super().__init__()
        self.linear_distance = Linear(DISTANCE_BINS, c_t, init="relu")
        self.linear_beta_mask = Linear(1, c_t, init="relu")
        self.linear_column_type = Linear(RESIDUE_TYPES, c_t, init="relu")
        self.linear_row_type = Linear(RESIDUE_TYPES, c_t, init="relu")
        self.linear_x = Linear(1, c_t, init="relu")
        self.linear_y = Linear(1, c_t, init="relu")
        self.linear_z = Linear(1, c_t, init="relu")
        self.linear_backbone_mask = Linear(1, c_t, init="relu")

    def forward(
        self, query: Tensor, aatype: Tensor, positions: Tensor, atom_mask: Tensor, same_chain: Tensor,
        shards: AxialShards = WHOLE,
    ) -> Tensor:  # fmt: skip
        """Add the features of one template for each of b complexes to ``query`` [b, n, n, c_t], or this rank's rows.

        aatype [b, n], positions [b, n, 37, 3] Å, atom_mask bool [b, n, 37]; same_chain bool [b, n, n] restricts
        distances and directions to pairs in the same chain.
        """

        def rows(x: Tensor) -> Tensor:
            return shards.own_residues(x, 1)

        beta, has_beta, frames, has_backbone = template_geometry(aatype, positions, atom_mask)
        beta_pairs = pairs_of(rows(has_beta), has_beta) & rows(same_chain)
        backbone_pairs = pairs_of(rows(has_backbone), has_backbone) & rows(same_chain)
        masked = self.linear_beta_mask, self.linear_x, self.linear_y, self.linear_z, self.linear_backbone_mask
        of_beta, *of_vector, of_backbone = (layer.weight for layer in masked)
        of_column, of_row = self.linear_column_type, self.linear_row_type
        bias = sum(layer.bias for layer in (self.linear_distance, *masked, of_column, of_row))
        index = distance_bins(rows(beta), beta).masked_fill(~beta_pairs, -1)
        # ``query`` first: ZeRO-3 releases the parameters when its gradient is known, which is then the last one
        z = query + one_hot_product(index, self.linear_distance.weight.T) + bias
        z = z + beta_pairs.unsqueeze(-1) * of_beta.T + backbone_pairs.unsqueeze(-1) * of_backbone.T
        z = (
            z
            + F.embedding(aatype, of_column.weight.T).unsqueeze(-3)
            + F.embedding(rows(aatype), of_row.weight.T).unsqueeze(-2)
        )
        unit = unit_vectors(frames, shards) * backbone_pairs.unsqueeze(-1)
        return z + unit.to(z.dtype) @ torch.cat(of_vector, 1).T


class MultimerTemplateEmbedder(nn.Module):
    """Templates as rows of the MSA representation and as an update of the pair representation.

    ``z += W relu(mean_t LN(stack(features_t + W_q LN(z))))`` over all t templates, absent ones included, as in
    AlphaFold.
    """

    def __init__(
        self, c_m: int, c_z: int, *, blocks: int, c_t: int, heads_pair: int, d_pair: int, c_multiplication: int,
        transition_factor: int, dropout: float, checkpoint_blocks: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.angle_embedder = TemplateAngleEmbedder(c_m, CHI_FEATURES)
        self.pair_embedder = MultimerTemplatePairEmbedder(c_t)
        self.layer_norm_query = LayerNorm(c_z)
        self.linear_query = Linear(c_z, c_t, init="relu")
        self.pair_stack = PairStack(
            blocks, checkpoint_blocks, c_z=c_t, heads_pair=heads_pair, d_pair=d_pair, c_multiplication=c_multiplication,
            transition_factor=transition_factor, dropout_pair=dropout, pair_updates=PAIR_UPDATES,
        )  # fmt: skip
        self.layer_norm = LayerNorm(c_t)
        self.linear_out = Linear(c_t, c_z, init="relu")

    def msa_rows(self, templates: Templates) -> Tensor:
        """Return rows [b, t, n, c_m] of the MSA representation; ``templates.chi_mask`` is their mask."""
        return self.angle_embedder(template_chi(templates))

    def forward(
        self, z: Tensor, templates: Templates, pair_mask: Tensor, same_chain: Tensor, shards: AxialShards = WHOLE, *,
        in_place: bool = False,
    ) -> Tensor:  # fmt: skip
        """z [b, n, n, c_z], masks bool [b, n, n] → z with the templates. ``shards``: z has this rank's rows, the masks
        and the templates have all.

        With gradient, all t templates pass the stack together; without it, one at a time, with memory for two of them.
        ``in_place``: add the update to z itself.
        """
        b, t, _ = templates.aatype.shape
        query = self.linear_query(self.layer_norm_query(z))  # the same for all templates
        if torch.is_grad_enabled():
            every = (x.flatten(0, 1) for x in (templates.aatype, templates.positions, templates.atom_mask))
            queries, chains = (x.repeat_interleave(t, 0) for x in (query, same_chain))
            pairs = self.pair_embedder(queries, *every, chains, shards)
            made = self._stack(pairs, pair_mask.repeat_interleave(t, 0), shards, in_place=False)
            mean = made.unflatten(0, (b, t)).mean(1)
        else:
            mean = torch.zeros_like(query)
            for k in range(t):
                one = (x[:, k] for x in (templates.aatype, templates.positions, templates.atom_mask))
                pairs = self.pair_embedder(query, *one, same_chain, shards)
                mean += self._stack(pairs, pair_mask, shards, in_place=in_place)
            mean /= t
        if in_place:
            return add_in_parts(z, lambda rows: self.linear_out(mean[:, rows].relu()), 1)
        return z + self.linear_out(mean.relu())

    def _stack(self, z: Tensor, pair_mask: Tensor, shards: AxialShards, *, in_place: bool) -> Tensor:
        """The pair stack on [b, n, n, c_t], and the layer norm after it."""
        return self.layer_norm(self.pair_stack(z, pair_mask, shards, in_place=in_place))
