"""Template embedder (Algorithm 2, lines 7–13; Algorithms 16 and 17): known structures as input of the trunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.geometry import Rigid, backbone_frames, table, torsion_mask, torsions_of_atoms
from ds4sci.kernels import evoformer_attention
from ds4sci.kernels.tiles import add_in_parts
from ds4sci.nn.embedders import one_hot_product
from ds4sci.nn.evoformer import BlockConfig, EvoformerStack, PairUpdate
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards
from ds4sci.types import RESIDUES

PAIR_FEATURES, ANGLE_FEATURES = 88, 57
DISTANCE_BINS, FIRST_EDGE, LAST_EDGE = 39, 3.25, 50.75
"""Bins of Cβ distances in Å: open above, and none below the first edge."""
RESIDUE_TYPES = 22
"""Amino acids, X and gap."""
POINTWISE_HEADS = 4
"""Heads of the attention over templates. The shapes of its parameters do not show them, so no model has others."""
PAIR_UPDATES: tuple[PairUpdate, ...] = (
    "attention_starting",
    "attention_ending",
    "multiplication_outgoing",
    "multiplication_incoming",
    "transition",
)
"""Updates of a block of Algorithm 16, in order."""


class Templates(NamedTuple):
    """t structures, aligned to the n residues of each chain.

    aatype     int64 [b, t, n]: 0–19, 20 X, 21 gap
    positions  [b, t, n, 37, 3] Å, 0 where missing
    atom_mask  bool [b, t, n, 37], True = coordinates present
    mask       bool [b, t], True = there is such a template
    """

    aatype: Tensor
    positions: Tensor
    atom_mask: Tensor
    mask: Tensor

    @property
    def row_mask(self) -> Tensor:
        """Mask of the MSA rows of templates, bool [b, t, n]: residues with N, CA, C and O, which have an angle ψ."""
        return torsion_mask(self.atom_mask, residue_type(self.aatype))[..., 2]

    @property
    def chi_mask(self) -> Tensor:
        """The same in AlphaFold-Multimer: residues with an angle χ1."""
        return torsion_mask(self.atom_mask, residue_type(self.aatype))[..., 3]


def residue_type(aatype: Tensor) -> Tensor:
    """A gap as X, the last type in the tables of atoms."""
    return aatype.clamp(max=20)


def template_angles(templates: Templates) -> Tensor:
    """Features of Algorithm 2, line 7: [b, t, n, 57].

    Residue type (22), sine and cosine of seven torsion angles (14), the same for the names of atoms that a symmetric
    side chain could have as well (14), mask of the angles (7). As in AlphaFold, masked angles are those of atoms at the
    origin.
    """
    aatype, positions = residue_type(templates.aatype), templates.positions
    angles = torsions_of_atoms(positions, aatype)
    periodic = F.pad(table("CHI_PI_PERIODIC", positions)[aatype], (3, 0)).unsqueeze(-1)
    parts = (
        F.one_hot(templates.aatype, RESIDUE_TYPES),
        angles.flatten(-2),
        torch.where(periodic, -angles, angles).flatten(-2),
        torsion_mask(templates.atom_mask, aatype),
    )
    return torch.cat([part.to(positions.dtype) for part in parts], dim=-1)


class TemplateAngleEmbedder(nn.Module):
    """Algorithm 2, line 7: two layers from the residue types and torsion angles of templates to rows of the MSA."""

    def __init__(self, c_m: int, features: int = ANGLE_FEATURES) -> None:
        super().__init__()
        self.linear_1 = Linear(features, c_m, init="relu")
        self.linear_2 = Linear(c_m, c_m, init="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Features [b, t, n, 57] of templates → rows [b, t, n, c_m] of the MSA representation."""
        return self.linear_2(self.linear_1(features.to(self.linear_1.weight.dtype)).relu())


class TemplatePairEmbedder(Linear):
    """Algorithm 2, line 9: a linear layer of the pair features of templates.

    The 88 features are distance bins (39), mask of Cβ (1), residue types of column and row (22 + 22), unit vectors (3)
    and mask of the backbone (1). Most are one-hot, so their products are looked up and no features are stored.
    """

    def __init__(self, c_t: int, *, unit_vectors: bool = False) -> None:
        super().__init__(PAIR_FEATURES, c_t, init="relu")
        self.unit_vectors = unit_vectors

    def forward(  # type: ignore[override]
        self, aatype: Tensor, positions: Tensor, atom_mask: Tensor, shards: AxialShards = WHOLE
    ) -> Tensor:
        """aatype [b, n], positions [b, n, 37, 3] Å, atom_mask bool [b, n, 37] of a template each → [b, n, n, c_t], or
        this rank's rows of ``shards``."""

        def rows(x: Tensor) -> Tensor:
            return shards.own_residues(x, 1)

        weight = self.weight.T
        sizes = (DISTANCE_BINS, 1, RESIDUE_TYPES, RESIDUE_TYPES, 3, 1)
        of_distance, of_beta, of_column, of_row, of_vector, of_backbone = weight.split(sizes)
        beta, has_beta, frames, has_backbone = template_geometry(aatype, positions, atom_mask)
        z = one_hot_product(distance_bins(rows(beta), beta), of_distance)
        z = z + pairs_of(rows(has_beta), has_beta).unsqueeze(-1) * of_beta
        of_rows = F.embedding(rows(aatype), of_row) + of_backbone
        z = z + F.embedding(aatype, of_column).unsqueeze(-3) + of_rows.unsqueeze(-2)
        if self.unit_vectors:
            z = z + unit_vectors(frames, shards).to(weight.dtype) @ of_vector
        return z * pairs_of(rows(has_backbone), has_backbone).unsqueeze(-1) + self.bias


def pairs_of(rows: Tensor, columns: Tensor) -> Tensor:
    """Masks of residues [b, i] and [b, j] → mask of their pairs [b, i, j]."""
    return rows.unsqueeze(-1) & columns.unsqueeze(-2)


def template_geometry(aatype: Tensor, positions: Tensor, atom_mask: Tensor) -> tuple[Tensor, Tensor, Rigid, Tensor]:
    """Cβ (Cα of glycine) [b, n, 3] Å and its mask, backbone frames [b, n] and their mask, of one template each.

    aatype [b, n], positions [b, n, 37, 3] Å, atom_mask bool [b, n, 37].
    """
    n, ca, c, cb = (ATOM37_INDEX[name] for name in ("N", "CA", "C", "CB"))
    glycine = aatype == RESIDUES.index("G")
    beta = torch.where(glycine.unsqueeze(-1), positions[..., ca, :], positions[..., cb, :])
    has_beta = torch.where(glycine, atom_mask[..., ca], atom_mask[..., cb])
    frames = backbone_frames(*(positions[..., atom, :] for atom in (n, ca, c)))
    return beta, has_beta, frames, atom_mask[..., n] & atom_mask[..., ca] & atom_mask[..., c]


def distance_bins(rows: Tensor, beta: Tensor) -> Tensor:
    """Bins of the distances of Cβ [b, i, 3] and [b, n, 3] Å: int64 [b, i, n], −1 below the first edge."""
    edges = torch.linspace(FIRST_EDGE, LAST_EDGE, DISTANCE_BINS, device=beta.device, dtype=beta.dtype)
    squared = (rows.unsqueeze(-2) - beta.unsqueeze(-3)).square().sum(-1)
    return torch.bucketize(squared, edges.square()) - 1


def unit_vectors(frames: Rigid, shards: AxialShards = WHOLE) -> Tensor:
    """Directions [b, n, n, 3] to the Cα of residue j (column) in the frame of residue i (row, those of this rank)."""
    rows = Rigid(shards.own_residues(frames.rotation, 1), shards.own_residues(frames.translation, 1))
    offset = rows.unsqueeze(-1).invert_apply(frames.translation.unsqueeze(-3))
    return offset * torch.rsqrt(1e-6 + offset.square().sum(-1, keepdim=True))


class TemplatePointwiseAttention(nn.Module):
    """Algorithm 17: each pair of residues attends to the same pair in the templates."""

    def __init__(self, c_t: int, c_z: int, d: int) -> None:
        super().__init__()
        self.linear_q = Linear(c_z, d * POINTWISE_HEADS, bias=False, init="glorot")
        self.linear_k = Linear(c_t, d * POINTWISE_HEADS, bias=False, init="glorot")
        self.linear_v = Linear(c_t, d * POINTWISE_HEADS, bias=False, init="glorot")
        self.linear_o = Linear(d * POINTWISE_HEADS, c_z, init="zero")

    def forward(self, z: Tensor, t: Tensor, mask: Tensor, *, in_place: bool = False) -> Tensor:
        """z [b, n, n, c_z], t [b, t, n, n, c_t], mask bool [b, t] → update of z, 0 for chains without templates.

        ``in_place``: add the update to z, a few rows at a time, and return z.
        """
        if not in_place:
            return self._update(z, t, mask)
        return add_in_parts(z, lambda rows: self._update(z[:, rows], t[:, :, rows], mask), 1)

    def _update(self, z: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        _, i, j, _ = z.shape
        q = rearrange(self.linear_q(z), "b i j (h d) -> b (i j) 1 h d", h=POINTWISE_HEADS)
        k, v = (
            rearrange(layer(t), "b t i j (h d) -> b (i j) t h d", h=POINTWISE_HEADS)
            for layer in (self.linear_k, self.linear_v)
        )
        out = evoformer_attention(q, k, v, repeat(mask, "b t -> b (i j) t", i=i, j=j))
        update = self.linear_o(rearrange(out, "b (i j) 1 h d -> b i j (h d)", i=i, j=j))
        return update * mask.any(1)[:, None, None, None]


class PairStack(EvoformerStack):
    """Algorithm 16: blocks of pair updates without an MSA. ``sizes`` are the fields of ``BlockConfig`` for pairs."""

    def __init__(self, blocks: int, checkpoint_blocks: bool, **sizes: Any) -> None:
        no_msa: dict[str, Any] = {
            "c_m": 0, "heads_msa": 0, "d_msa": 0, "c_outer": 0, "convolution_width": 0, "dropout_msa": 0.0,
            "msa_updates": (),
        }  # fmt: skip
        super().__init__(BlockConfig(**sizes, **no_msa), blocks, checkpoint_blocks)

    def forward(  # type: ignore[override]
        self, z: Tensor, pair_mask: Tensor, shards: AxialShards = WHOLE, *, in_place: bool = False
    ) -> Tensor:
        """z [b, n, n, c_z], pair_mask bool [b, n, n] → the updated z."""
        no_msa = z.new_zeros(z.shape[0], 0, z.shape[2], 0)
        _, z = super().forward(no_msa, z, pair_mask[:, :0], pair_mask, shards, in_place=in_place)
        return z


class TemplateEmbedder(nn.Module):
    """Templates as rows of the MSA representation and as an update of the pair representation."""

    def __init__(
        self, c_m: int, c_z: int, *, blocks: int, c_t: int, heads_pair: int, d_pair: int, c_multiplication: int,
        transition_factor: int, d_attention: int, dropout: float, unit_vectors: bool, checkpoint_blocks: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.c_t = c_t
        self.angle_embedder = TemplateAngleEmbedder(c_m)
        self.pair_embedder = TemplatePairEmbedder(c_t, unit_vectors=unit_vectors)
        self.pair_stack = PairStack(
            blocks, checkpoint_blocks, c_z=c_t, heads_pair=heads_pair, d_pair=d_pair, c_multiplication=c_multiplication,
            transition_factor=transition_factor, dropout_pair=dropout, pair_updates=PAIR_UPDATES,
        )  # fmt: skip
        self.layer_norm = LayerNorm(c_t)
        self.attention = TemplatePointwiseAttention(c_t, c_z, d_attention)

    def msa_rows(self, templates: Templates) -> Tensor:
        """Return rows [b, t, n, c_m] of the MSA representation; ``templates.row_mask`` is their mask."""
        return self.angle_embedder(template_angles(templates))

    def forward(
        self, z: Tensor, templates: Templates, pair_mask: Tensor, shards: AxialShards = WHOLE, *,
        in_place: bool = False,
    ) -> Tensor:  # fmt: skip
        """z [b, n, n, c_z], pair_mask bool [b, n, n] → z with the templates. ``shards``: z has this rank's rows, the
        mask and the templates have all.

        Memory: the representation of t templates, ``t n² c_t`` numbers. With gradient, all of them pass the stack
        together; without it, one at a time. ``in_place``: add the update to z itself.
        """
        b, t, n = templates.aatype.shape
        if torch.is_grad_enabled():
            every = Templates(*(x.flatten(0, 1) for x in templates))
            pairs = self._embed(every, pair_mask.repeat_interleave(t, 0), shards, in_place=False).unflatten(0, (b, t))
        else:
            pairs = z.new_empty(b, t, z.shape[1], n, self.c_t)
            for k in range(t):
                one = Templates(*(x[:, k] for x in templates))
                pairs[:, k] = self._embed(one, pair_mask, shards, in_place=in_place)
        if in_place:
            return self.attention(z, pairs, templates.mask, in_place=True)
        return z + self.attention(z, pairs, templates.mask)

    def _embed(self, templates: Templates, pair_mask: Tensor, shards: AxialShards, *, in_place: bool) -> Tensor:
        """Algorithm 2, lines 9–11: pair representation [b, n, n, c_t] of one template of each of b chains."""
        z = self.pair_embedder(templates.aatype, templates.positions, templates.atom_mask, shards)
        return self.layer_norm(self.pair_stack(z, pair_mask, shards, in_place=in_place))
