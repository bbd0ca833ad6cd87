"""Structure module (Algorithms 20, 22, 23): from the Evoformer output to frames and torsion angles.

Translations of frames are in units of ``POSITION_SCALE`` Å, as in AlphaFold. Geometry is computed in
fp32 or fp64 for any dtype of weights, with autocast disabled: frames composed in bf16 are off by several Å.

Axial parallelism: each rank computes its n_r of the n residues, with their rows of the pair representation; keys,
values and points of attention are gathered. Elements sent by each rank with even parts, × n (P − 1) / P: 2 h d + 3 h
(qk_points + v_points) in each iteration, and 40 per iteration at the end. The same again for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.geometry import Rigid, compose_along_chain, rotation_from_6d, rotation_from_update
from ds4sci.kernels.tiles import part_slices
from ds4sci.nn.embedders import Kind
from ds4sci.nn.linear import LayerNorm, Linear, wide
from ds4sci.parallel.axial import WHOLE, AxialShards

POSITION_SCALE: dict[Kind, float] = {"monomer": 10.0, "multimer": 20.0}
"""Å. Unit of the translations of frames within the structure module."""

HELIX_STEP = (0.3750, 0.2786, 0.8842, -0.9240, 0.0354, 0.3807), (3.5802, 0.9730, -0.8464)
"""Frame of residue i+1 in that of residue i in an α-helix, mean over PDB chains: two columns of the rotation, and Å."""


class InvariantPointAttention(nn.Module):
    """Algorithm 22. Invariant point attention: scalar attention, pair bias, and distances between points in the frames.

    ``w_C Σ_p |T_i q_ip - T_j k_jp|²`` is expanded to ``|q|² + |k|² - 2 q·k``, so that no tensor [n, n, h, p, 3] is
    needed.
    """

    def __init__(
        self, c_s: int, c_z: int, d: int, heads: int, qk_points: int, v_points: int, kind: Kind = "monomer"
    ) -> None:
        super().__init__()
        self.d, self.heads, self.qk_points, self.v_points = d, heads, qk_points, v_points
        self.kind = kind
        self.linear_q = Linear(c_s, heads * d, bias=kind == "monomer")
        self.linear_q_points = Linear(c_s, heads * qk_points * 3)
        if kind == "monomer":
            self.linear_kv = Linear(c_s, 2 * heads * d)
            self.linear_kv_points = Linear(c_s, heads * (qk_points + v_points) * 3)
        else:
            self.linear_k = Linear(c_s, heads * d, bias=False)
            self.linear_v = Linear(c_s, heads * d, bias=False)
            self.linear_k_points = Linear(c_s, heads * qk_points * 3)
            self.linear_v_points = Linear(c_s, heads * v_points * 3)
        self.linear_b = Linear(c_z, heads)
        self.head_weights = nn.Parameter(torch.full((heads,), math.log(math.e - 1)))  # softplus = 1
        self.linear_out = Linear(heads * (c_z + d + 4 * v_points), c_s, init="zero")

    def _keys_and_values(self, s: Tensor, frames: Rigid, shards: AxialShards) -> tuple[Tensor, Tensor, Tensor]:
        """Scalars k and v [b, h, n, d], and the points of both [b, h, n, p, 3] in the global frame."""
        h = self.heads
        if self.kind == "monomer":
            kv, points = self.linear_kv(s), self._points(self.linear_kv_points(s))
        else:
            pairs = (self.linear_k, self.linear_v), (self.linear_k_points, self.linear_v_points)
            kv = torch.cat([layer(s).unflatten(-1, (h, -1)) for layer in pairs[0]], -1).flatten(-2)
            points = torch.cat([self._points(layer(s)).unflatten(-2, (h, -1)) for layer in pairs[1]], -2)
            points = points.flatten(-3, -2)
        kv = shards.gather_residues(kv, 1)
        k, v = rearrange(kv, "b n (h two d) -> two b h n d", h=h, two=2)
        points = shards.gather_residues(frames.unsqueeze(-1).apply(points), 1)
        return k, v, rearrange(points, "b n (h p) x -> b h n p x", h=h)

    def _points(self, projected: Tensor) -> Tensor:
        """[b, n, 3 h p] → points [b, n, h p, 3], in the layout of AlphaFold's weights.

        x of all points, then y, then z; in AlphaFold-Multimer, in each head.
        """
        if self.kind == "monomer":
            return rearrange(wide(projected), "b n (x p) -> b n p x", x=3)
        return rearrange(wide(projected), "b n (h x p) -> b n (h p) x", h=self.heads, x=3)

    def pair_bias(self, z: Tensor, mask: Tensor) -> Tensor:
        """z [b, n_r, n, c_z], key mask bool [b, n] → bias of the logits [b, h, n_r, n], the same for all iterations."""
        bias = math.sqrt(1 / 3) * rearrange(wide(self.linear_b(z)), "b q k h -> b h q k")
        return bias.masked_fill(~mask[:, None, None, :], -1e9)

    def forward(
        self, s: Tensor, z: Callable[[slice], Tensor], frames: Rigid, bias: Tensor, shards: AxialShards = WHOLE, *,
        rows: Sequence[slice] = (slice(None),),
    ) -> Tensor:  # fmt: skip
        """s [b, n_r, c_s], z [b, n_r, n, c_z], frames [b, n_r], bias of ``pair_bias`` [b, h, n_r, n] → update of s.

        z     function that returns some of the rows
        rows  parts in which the rows are computed, one after the other
        """
        h = self.heads
        q = rearrange(self.linear_q(s), "b n (h d) -> b h n d", h=h)
        k, v, kv_points = self._keys_and_values(s, frames, shards)
        q_points = frames.unsqueeze(-1).apply(self._points(self.linear_q_points(s)))
        q_points = rearrange(q_points, "b n (h p) x -> b h n (p x)", h=h)
        k_points, v_points = kv_points.split([self.qk_points, self.v_points], dim=-2)
        k_points = k_points.flatten(-2)

        weight = F.softplus(wide(self.head_weights)) * math.sqrt(1 / (3 * self.qk_points * 9 / 2))
        weight = weight[:, None, None]
        # one matrix product for scalars and points: q·k/√(3d) + w q·k of the points; |q|² and |k|² are added below
        query = torch.cat([wide(q) * math.sqrt(1 / (3 * self.d)), weight * q_points], dim=-1)
        key = torch.cat([wide(k), k_points], dim=-1)
        squares = k_points.square().sum(-1).unsqueeze(-2)

        def attend(own: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Scalar, point and pair values of some residues."""
            norms = q_points[:, :, own].square().sum(-1, keepdim=True) + squares
            scores = query[:, :, own] @ key.transpose(-1, -2) - 0.5 * weight * norms
            attention = (scores + bias[:, :, own]).softmax(-1)
            out = rearrange(torch.einsum("bhqk,bhkd->bhqd", attention.to(v.dtype), v), "b h n d -> b n (h d)")
            out_points = torch.einsum("bhqk,bhkpx->bqhpx", attention, v_points).flatten(-3, -2)
            pairs = z(own)
            return out, out_points, torch.einsum("bhqk,bqkc->bqhc", attention.to(pairs.dtype), pairs).flatten(-2)

        made = [attend(own) for own in rows]
        out, out_points, out_pair = made[0] if len(made) == 1 else (torch.cat(x, 1) for x in zip(*made, strict=True))
        out_points = frames.unsqueeze(-1).invert_apply(out_points)
        norm = torch.sqrt(out_points.square().sum(-1) + 1e-8)
        parts = [wide(out), *out_points.unbind(-1), norm, wide(out_pair)]
        return self.linear_out(torch.cat(parts, dim=-1).to(s.dtype))


class ResidueDropout(nn.Dropout):
    """Dropout of [b, n, c] that drops the same elements of a rank's residues as a single rank that holds all n."""

    def forward(self, x: Tensor, shards: AxialShards = WHOLE) -> Tensor:
        if shards.group.size == 1 or not self.training or self.p == 0.0:
            return super().forward(x)
        n = shards.residues[-1].stop
        return x * shards.own_residues(super().forward(x.new_ones(x.shape[0], n, x.shape[2])), 1)


class AngleResnetBlock(nn.Module):
    """Algorithm 20, line 13: ``a + W₂ relu(W₁ relu(a))``."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.linear_1 = Linear(c, c, init="relu")
        self.linear_2 = Linear(c, c, init="zero")

    def forward(self, a: Tensor) -> Tensor:
        return a + self.linear_2(self.linear_1(a.relu()).relu())


class AngleResnet(nn.Module):
    """Algorithm 20, lines 11–14: (sin, cos) of the seven torsion angles, [b, n, 7, 2], raw and normalized."""

    def __init__(self, c_s: int, c: int, blocks: int) -> None:
        super().__init__()
        self.linear_in = Linear(c_s, c)
        self.linear_initial = Linear(c_s, c)
        self.layers = nn.ModuleList(AngleResnetBlock(c) for _ in range(blocks))
        self.linear_out = Linear(c, 14)

    def forward(self, s: Tensor, s_initial: Tensor) -> tuple[Tensor, Tensor]:
        # relu of the inputs: not in the algorithm, but in AlphaFold's code
        a = self.linear_in(s.relu()) + self.linear_initial(s_initial.relu())
        for layer in self.layers:
            a = layer(a)
        raw = wide(self.linear_out(a.relu())).unflatten(-1, (7, 2))
        return raw, raw / torch.sqrt(raw.square().sum(-1, keepdim=True).clamp(min=1e-8))


class StructureTransitionLayer(nn.Module):
    """``s + W₃ relu(W₂ relu(W₁ s))``."""

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear_1 = Linear(c_s, c_s, init="relu")
        self.linear_2 = Linear(c_s, c_s, init="relu")
        self.linear_3 = Linear(c_s, c_s, init="zero")

    def forward(self, s: Tensor) -> Tensor:
        return s + self.linear_3(self.linear_2(self.linear_1(s).relu()).relu())


class StructureTransition(nn.Module):
    """Algorithm 20, lines 8–9: residual three-layer MLPs, dropout, layer norm."""

    def __init__(self, c_s: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(StructureTransitionLayer(c_s) for _ in range(layers))
        self.dropout = ResidueDropout(dropout)
        self.layer_norm = LayerNorm(c_s)

    def forward(self, s: Tensor, shards: AxialShards = WHOLE) -> Tensor:
        for layer in self.layers:
            s = layer(s)
        return self.layer_norm(self.dropout(s, shards))


class BackboneUpdate(nn.Module):
    """Algorithm 23: frame update from the vector part of a quaternion and a translation."""

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear = Linear(c_s, 6, init="zero")

    def forward(self, s: Tensor) -> Rigid:
        update = wide(self.linear(s))
        return Rigid(rotation_from_update(update[..., :3]), update[..., 3:])


class ChainFrames(nn.Module):
    """Initial frames along a predicted chain (not in AlphaFold, which starts from identity frames).

    Each residue predicts its frame relative to the previous one, and these are composed along the chain. The initial
    weights give an α-helix. An untrained chain is too extended, so translations are scaled down to a radius of gyration
    of at most 1.5 times that of native folds, 2.2 n^0.38 Å.
    """

    def __init__(self, c_s: int) -> None:
        super().__init__()
        self.linear = Linear(c_s, 9, init="zero")
        with torch.no_grad():
            self.linear.bias.copy_(torch.tensor(HELIX_STEP[0] + HELIX_STEP[1]))

    def forward(self, s: Tensor, mask: Tensor, shards: AxialShards = WHOLE) -> Rigid:
        """s [b, n_r, c_s], mask bool [b, n] → frames [b, n] in Å, centered on the chain."""
        step = wide(shards.gather_residues(self.linear(s), 1))
        chain = compose_along_chain(Rigid(rotation_from_6d(step[..., :6]), step[..., 6:]))
        keep = mask.unsqueeze(-1).to(step.dtype)
        count = keep.sum(-2, keepdim=True).clamp(min=1.0)
        centered = chain.translation - (chain.translation * keep).sum(-2, keepdim=True) / count
        radius = torch.sqrt((centered.square().sum(-1, keepdim=True) * keep).sum(-2, keepdim=True) / count + 1e-6)
        return Rigid(chain.rotation, centered * (1.5 * 2.2 * count**0.38 / radius).clamp(max=1.0))


class Structure(NamedTuple):
    """Output of the structure module: frames in Å and angles after each iteration, final single, initial frames.

    Of all residues, except the single representation, which has those of this rank.
    """

    rotations: Tensor
    translations: Tensor
    angles: Tensor
    raw_angles: Tensor
    single: Tensor
    initial_frames: Rigid


class StructureModule(nn.Module):
    """Algorithm 20 up to the torsion angles. All iterations share weights."""

    def __init__(
        self, c_s: int, c_z: int, *, d_ipa: int = 16, heads: int = 12, qk_points: int = 4, v_points: int = 8,
        c_angle: int = 128, angle_blocks: int = 2, transition_layers: int = 1, iterations: int = 8,
        dropout: float = 0.1, initial_frames: Literal["identity", "chain"] = "identity", kind: Kind = "monomer",
    ) -> None:  # fmt: skip
        super().__init__()
        self.iterations, self.position_scale = iterations, POSITION_SCALE[kind]
        self.layer_norm_s = LayerNorm(c_s)
        self.layer_norm_z = LayerNorm(c_z)
        self.linear_in = Linear(c_s, c_s)
        self.ipa = InvariantPointAttention(c_s, c_z, d_ipa, heads, qk_points, v_points, kind)
        self.ipa_dropout = ResidueDropout(dropout)
        self.layer_norm_ipa = LayerNorm(c_s)
        self.transition = StructureTransition(c_s, transition_layers, dropout)
        self.bb_update = BackboneUpdate(c_s)
        self.angle_resnet = AngleResnet(c_s, c_angle, angle_blocks)
        self.chain_start = ChainFrames(c_s) if initial_frames == "chain" else None

    def initial_frames(self, single: Tensor, mask: Tensor, shards: AxialShards = WHOLE) -> Rigid:
        """Frames [b, n] of the first iteration. single [b, n_r, c_s], mask bool [b, n]."""
        with torch.autocast(single.device.type, enabled=False):
            return self._initialize(single, mask, shards)[1]

    def _initialize(self, single: Tensor, mask: Tensor, shards: AxialShards) -> tuple[Tensor, Rigid]:
        s = self.layer_norm_s(single.to(self.linear_in.weight.dtype))
        if self.chain_start is None:
            return s, Rigid.identity(tuple(mask.shape), wide(s))
        return s, self.chain_start(s, mask, shards)

    def forward(self, single: Tensor, pair: Tensor, mask: Tensor, shards: AxialShards = WHOLE) -> Structure:
        """single [b, n_r, c_s], pair [b, n_r, n, c_z], mask bool [b, n] → ``Structure``.

        shards  division of the residues over the ranks that share the batch; n_r = n for a single rank

        Without gradient, some rows of the pair representation are normalized at a time, again in each iteration.
        """
        with torch.autocast(single.device.type, enabled=False):
            s_initial, initial = self._initialize(single, mask, shards)
            # a rank may have no rows
            rows = [slice(None)] if torch.is_grad_enabled() else list(part_slices(pair, 1)) or [slice(None)]
            whole = self.layer_norm_z(pair.to(s_initial.dtype)) if torch.is_grad_enabled() else None

            def z(own: slice) -> Tensor:
                return self.layer_norm_z(pair[:, own].to(s_initial.dtype)) if whole is None else whole

            s = self.linear_in(s_initial)
            # detached: gradients of the later losses explode through a chain of n steps; a local loss trains the
            # initial frames
            rotation, translation = (
                shards.own_residues(x.detach(), 1) for x in (initial.rotation, initial.translation)
            )
            frames = Rigid(rotation, translation).scale(1 / self.position_scale)
            biases = [self.ipa.pair_bias(z(own), mask) for own in rows]
            bias = biases[0] if len(biases) == 1 else torch.cat(biases, 2)
            del biases
            states, angles, raw_angles = [], [], []
            for _ in range(self.iterations):
                s = self.layer_norm_ipa(self.ipa_dropout(s + self.ipa(s, z, frames, bias, shards, rows=rows), shards))
                s = self.transition(s, shards)
                frames = frames.compose(self.bb_update(s))
                raw, unit = self.angle_resnet(s, s_initial)
                states.append(frames.scale(self.position_scale))
                raw_angles.append(raw)
                angles.append(unit)
                # gradients of rotations stop between iterations (line 20), those of translations do not
                frames = frames.detach_rotation()
            results = ([f.rotation for f in states], [f.translation for f in states], angles, raw_angles)
            rotations, translations, angle, raw_angle = (shards.gather_residues(torch.stack(x), 2) for x in results)
            return Structure(rotations, translations, angle, raw_angle, s, initial)
