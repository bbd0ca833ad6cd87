"""Rigid frames, torsion angles and all-atom reconstruction (AlphaFold 2 supplement 1.8 and 1.9.1). Å, radians.

All functions compute in the dtype of their input. Callers that use autocast or bf16 weights must cast to fp32 first:
composing frames in bf16 accumulates errors of several Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.chemistry import residue_constants


@dataclass(frozen=True)
class Rigid:
    """Rigid transforms x ↦ R x + t. ``rotation`` [..., 3, 3], ``translation`` [..., 3] Å; leading axes broadcast."""

    rotation: Tensor
    translation: Tensor

    @staticmethod
    def identity(shape: tuple[int, ...], like: Tensor) -> Rigid:
        eye = torch.eye(3, dtype=like.dtype, device=like.device)
        return Rigid(eye.expand(*shape, 3, 3), like.new_zeros(*shape, 3))

    def apply(self, points: Tensor) -> Tensor:
        """Return R x + t for ``points`` [..., 3], broadcast against the frames."""
        return (self.rotation * points.unsqueeze(-2)).sum(-1) + self.translation

    def invert_apply(self, points: Tensor) -> Tensor:
        """Return Rᵀ (x - t) for ``points`` [..., 3]."""
        return (self.rotation * (points - self.translation).unsqueeze(-1)).sum(-2)

    def compose(self, other: Rigid) -> Rigid:
        """Return the transform that applies ``other`` first: (R R', R t' + t)."""
        return Rigid(self.rotation @ other.rotation, self.apply(other.translation))

    def unsqueeze(self, dim: int) -> Rigid:
        """Insert an axis at ``dim`` (negative, counted among the frame axes)."""
        return Rigid(self.rotation.unsqueeze(dim - 2), self.translation.unsqueeze(dim - 1))

    def detach_rotation(self) -> Rigid:
        return Rigid(self.rotation.detach(), self.translation)

    def scale(self, factor: float) -> Rigid:
        return Rigid(self.rotation, self.translation * factor)


def frame_from_axes(origin: Tensor, along_x: Tensor, towards_y: Tensor) -> Rigid:
    """Return the frame at ``origin`` with x along ``along_x`` and ``towards_y`` in the upper half of its xy plane.

    Gram–Schmidt. All arguments are [..., 3]; the last two are directions. Degenerate input gives a finite frame.
    """
    x = F.normalize(along_x, dim=-1, eps=1e-8)
    y = F.normalize(towards_y - (towards_y * x).sum(-1, keepdim=True) * x, dim=-1, eps=1e-8)
    return Rigid(torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), origin)


def backbone_frames(n: Tensor, ca: Tensor, c: Tensor) -> Rigid:
    """Algorithm 21 (rigidFrom3Points): origin at CA, C on +x, N in the upper half of the xy plane. [..., 3] Å."""
    return frame_from_axes(ca, c - ca, n - ca)


def rotation_from_update(bcd: Tensor) -> Tensor:
    """Algorithm 23 (BackboneUpdate): rotation of the normalised quaternion (1, b, c, d). [..., 3] → [..., 3, 3]."""
    a, b, c, d = F.normalize(F.pad(bcd, (1, 0), value=1.0), dim=-1).unbind(-1)
    return torch.stack(
        [
            a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c,
            2 * b * c + 2 * a * d, a * a - b * b + c * c - d * d, 2 * c * d - 2 * a * b,
            2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a - b * b - c * c + d * d,
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def rotation_from_6d(xy: Tensor) -> Tensor:
    """Rotation [..., 3, 3] from two 3-vectors [..., 6] by Gram–Schmidt, a continuous representation (Zhou et al.
    2019)."""
    return frame_from_axes(torch.zeros_like(xy[..., :3]), xy[..., :3], xy[..., 3:]).rotation


def compose_along_chain(steps: Rigid) -> Rigid:
    """Cumulative product T₀, T₀T₁, T₀T₁T₂, … over the last frame axis n, in log₂ n batched products (Hillis–Steele)."""
    rotation, translation = steps.rotation, steps.translation
    shift = 1
    while shift < rotation.shape[-3]:
        later = Rigid(rotation[..., shift:, :, :], translation[..., shift:, :])
        earlier = Rigid(rotation[..., :-shift, :, :], translation[..., :-shift, :])
        product = earlier.compose(later)
        rotation = torch.cat([rotation[..., :shift, :, :], product.rotation], dim=-3)
        translation = torch.cat([translation[..., :shift, :], product.translation], dim=-2)
        shift *= 2
    return Rigid(rotation, translation)


@cache
def _constant(name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    # inference_mode(False): a constant created under inference_mode could not be used in training
    with torch.inference_mode(False):
        return torch.tensor(np.array(getattr(residue_constants, name)), dtype=dtype, device=device)


def table(name: str, like: Tensor) -> Tensor:
    """Return an array of ``ds4sci.chemistry.residue_constants`` as a tensor on the device of ``like``.

    Floating-point arrays are converted to the dtype of ``like``.
    """
    floating = getattr(residue_constants, name).dtype.kind == "f"
    return _constant(name, like.dtype if floating else None, like.device)


def torsion_to_frames(backbone: Rigid, angles: Tensor, aatype: Tensor) -> Rigid:
    """Algorithm 24, lines 1–10: backbone frames [b, n] and (sin, cos) [b, n, 7, 2] → rigid groups [b, n, 8], global."""
    default = table("GROUP_FRAME", angles)[aatype]
    sin, cos = F.pad(angles, (0, 0, 1, 0), value=0.0).unbind(-1)
    cos = torch.cat([torch.ones_like(cos[..., :1]), cos[..., 1:]], dim=-1)
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).unflatten(-1, (3, 3))
    rotation = default[..., :3, :3] @ turn
    groups = [Rigid(rotation[..., k, :, :], default[..., k, :3, 3]) for k in range(8)]
    for k in (5, 6, 7):  # χ2–χ4 depend on the previous χ, the other groups on the backbone
        groups[k] = groups[k - 1].compose(groups[k])
    local = Rigid(torch.stack([g.rotation for g in groups], -3), torch.stack([g.translation for g in groups], -2))
    return backbone.unsqueeze(-1).compose(local)


def frames_to_atom14(frames: Rigid, aatype: Tensor) -> Tensor:
    """Algorithm 24, line 11: place ideal atoms by their rigid group, [b, n, 8] → [b, n, 14, 3] Å, 0 for missing
    atoms."""
    group = table("ATOM14_GROUP", frames.rotation)[aatype]
    rotation = torch.take_along_dim(frames.rotation, group[..., None, None], dim=-3)
    translation = torch.take_along_dim(frames.translation, group[..., None], dim=-2)
    atoms = Rigid(rotation, translation).apply(table("ATOM14_IDEAL", frames.rotation)[aatype])
    return atoms * table("ATOM14_MASK", atoms)[aatype].unsqueeze(-1)


def atom14_to_atom37(atoms: Tensor, aatype: Tensor) -> Tensor:
    """Convert [b, n, 14, ...] to [b, n, 37, ...], 0 for atoms that the residue does not have."""
    return _regroup(atoms, table("ATOM37_TO_14", atoms)[aatype], table("ATOM37_MASK", atoms)[aatype])


def atom37_to_atom14(atoms: Tensor, aatype: Tensor) -> Tensor:
    """Convert [b, n, 37, ...] to [b, n, 14, ...], 0 for unused columns. Also accepts masks [b, n, 37]."""
    return _regroup(atoms, table("ATOM14_TO_37", atoms)[aatype], table("ATOM14_MASK", atoms)[aatype])


def _regroup(atoms: Tensor, index: Tensor, keep: Tensor) -> Tensor:
    if atoms.dim() == index.dim():
        return torch.take_along_dim(atoms, index, dim=-1) & keep
    return torch.take_along_dim(atoms, index.unsqueeze(-1), dim=-2) * keep.unsqueeze(-1)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return (sin, cos) [..., 2] of the torsion angle a–b–c–d about the bond b–c, with the IUPAC sign."""
    local = frame_from_axes(c, c - b, a - b).invert_apply(d)
    return F.normalize(torch.stack([local[..., 2], local[..., 1]], dim=-1), dim=-1)


def torsion_angles(atom37: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return ω, φ, ψ, χ1–4 of a structure as (sin, cos) [b, n, 7, 2] and their mask [b, n, 7] (Table 2).

    ``atom37`` [b, n, 37, 3] Å, ``mask`` bool [b, n, 37]. ω and φ need the previous residue and are masked at chain
    breaks. ψ is computed from O, the atom of its rigid group: it is N–CA–C–O plus π, because O is opposite the next N.
    """
    bonded = F.pad(residue_index[..., 1:] - residue_index[..., :-1] == 1, (1, 0))
    masks = torsion_mask(mask, aatype)
    masks = torch.cat([masks[..., :2] & bonded.unsqueeze(-1), masks[..., 2:]], dim=-1)
    return torsions_of_atoms(atom37, aatype) * masks.unsqueeze(-1), masks


def torsions_of_atoms(atom37: Tensor, aatype: Tensor) -> Tensor:
    """Return the torsion angles of ``torsion_angles``, without a mask: missing atoms count as being where they are.

    Each residue follows the one before it; before the first one, all atoms are at the origin.
    """
    n, ca, c, o = (atom37[..., residue_constants.ATOM37_INDEX[x], :] for x in ("N", "CA", "C", "O"))
    previous_ca, previous_c = (F.pad(x[..., :-1, :], (0, 0, 1, 0)) for x in (ca, c))
    omega = dihedral(previous_ca, previous_c, n, ca)
    phi = dihedral(previous_c, n, ca, c)
    psi = -dihedral(n, ca, c, o)
    index = table("CHI_ATOM37", atom37)[aatype].flatten(-2)  # [b, n, 16]
    points = torch.take_along_dim(atom37, index.unsqueeze(-1), dim=-2).unflatten(-2, (4, 4))
    chi = dihedral(*points.unbind(-2))
    return torch.cat([torch.stack([omega, phi, psi], dim=-2), chi], dim=-2)


def torsion_mask(mask: Tensor, aatype: Tensor) -> Tensor:
    """Return bool [b, n, 7], True = the residue has the torsion angle, and ``mask`` bool [b, n, 37] its four atoms.

    Each residue follows the one before it.
    """
    has_n, has_ca, has_c, has_o = (mask[..., residue_constants.ATOM37_INDEX[x]] for x in ("N", "CA", "C", "O"))
    previous_has_ca, previous_has_c = (F.pad(x[..., :-1], (1, 0)) for x in (has_ca, has_c))
    backbone = [
        previous_has_ca & previous_has_c & has_n & has_ca,
        previous_has_c & has_n & has_ca & has_c,
        has_n & has_ca & has_c & has_o,
    ]
    index = table("CHI_ATOM37", mask)[aatype].flatten(-2)
    has_chi = torch.take_along_dim(mask, index, dim=-1).unflatten(-1, (4, 4)).all(-1)
    return torch.cat([torch.stack(backbone, dim=-1), has_chi & table("CHI_MASK", mask)[aatype]], dim=-1)


def rigid_groups(atom37: Tensor, mask: Tensor, aatype: Tensor) -> tuple[Rigid, Tensor]:
    """Return the rigid groups [b, n, 8] of a known structure and their mask; the inverse of ``frames_to_atom14``.

    ``atom37`` [b, n, 37, 3] Å, ``mask`` bool [b, n, 37]. ω and φ own no atoms and are masked.
    """
    index = table("GROUP_ATOM37", atom37)[aatype]  # [b, n, 8, 3]
    points = torch.take_along_dim(atom37, index.flatten(-2).unsqueeze(-1), dim=-2).unflatten(-2, (8, 3))
    back, origin, plane = points.unbind(-2)
    forward = torch.ones(8, 1, dtype=atom37.dtype, device=atom37.device)
    forward[0] = -1.0  # in the backbone group the first atom, C, is on +x
    frames = frame_from_axes(origin, (origin - back) * forward, plane - origin)
    present = torch.take_along_dim(mask, index.flatten(-2), dim=-1).unflatten(-1, (8, 3)).all(-1)
    return frames, present & table("GROUP_MASK", atom37)[aatype]


def pseudo_beta(atom37: Tensor, mask: Tensor, aatype: Tensor) -> tuple[Tensor, Tensor]:
    """Return Cβ [b, n, 3] Å and its mask: Cα for glycine, the ideal position if Cβ is missing (backbone-only sets).

    N, CA and C determine the ideal Cβ to within 0.1 Å, so backbone-only data can train the distogram.
    """
    n, ca, c, cb = (atom37[..., residue_constants.ATOM37_INDEX[x], :] for x in ("N", "CA", "C", "CB"))
    has_n, has_ca, has_c, has_cb = (mask[..., residue_constants.ATOM37_INDEX[x]] for x in ("N", "CA", "C", "CB"))
    ideal = backbone_frames(n, ca, c).apply(table("ATOM14_IDEAL", atom37)[0, 4])
    glycine = (aatype == residue_constants.encode("G").item())[..., None]
    position = torch.where(glycine, ca, torch.where(has_cb[..., None], cb, ideal))
    return position, torch.where(glycine[..., 0], has_ca, has_cb | (has_n & has_ca & has_c))


def distance_change(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """Root mean square change in Å of the distances of all pairs of points, for each of b structures.

    before, after [b, n, 3] Å, mask bool [b, n] → [b]. AlphaFold-Multimer stops recycling by it (after AF2Complex, Gao
    et al. 2022).
    """
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    exact = "donot_use_mm_for_euclid_dist"
    old, new = (torch.cdist(x, x, compute_mode=exact) for x in (before, after))
    squared = (old - new).square().masked_fill(~pairs, 0.0)
    return (squared.sum((-1, -2)) / pairs.sum((-1, -2)).clamp(min=1)).sqrt()


def distogram_edges(bins: int, like: Tensor) -> Tensor:
    """Return the ``bins - 1`` edges between distogram bins, 2.3125–21.6875 Å (supplement 1.9.8)."""
    return torch.linspace(2.3125, 21.6875, bins - 1, device=like.device, dtype=like.dtype)


def distogram_centres(bins: int, like: Tensor) -> Tensor:
    """Return the centre of each distogram bin in Å. The open first and last bins get the same width as the others."""
    edges = distogram_edges(bins, like)
    half = (edges[1] - edges[0]) / 2
    return torch.cat([edges - half, edges[-1:] + half])


def aligned_error_edges(bins: int, like: Tensor) -> Tensor:
    """Return the ``bins - 1`` edges between bins of aligned errors, 0–31 Å for 64 bins (supplement 1.9.7).

    As in AlphaFold's code, the first bin is an error of 0, which residues have in their own frames.
    """
    return torch.arange(bins - 1, device=like.device, dtype=like.dtype) / 2


def aligned_error_centres(bins: int, like: Tensor) -> Tensor:
    """Return the errors in Å that AlphaFold's code assigns to the bins: 0.25–31.75 Å for 64 bins."""
    return torch.arange(bins, device=like.device, dtype=like.dtype) / 2 + 0.25
