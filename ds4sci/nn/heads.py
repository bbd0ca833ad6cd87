"""Distogram and pLDDT heads (supplement 1.9.6, 1.9.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards

DISTOGRAM_BINS = 64
"""Bins of the distogram."""


class DistogramHead(nn.Module):
    """Logits of Cβ distance bins from the symmetrized pair representation: 64 bins, 2.3125–21.6875 Å (1.9.8)."""

    def __init__(self, c_z: int, bins: int = DISTOGRAM_BINS) -> None:
        super().__init__()
        self.linear = Linear(c_z, bins, init="zero")

    def forward(self, z: Tensor, shards: AxialShards = WHOLE) -> Tensor:
        """z [b, n_r, n, c_z] → logits [b, n_r, n, bins]. With fewer than n rows, a rank receives its columns."""
        logits = self.linear(z)
        return logits + shards.pair_to_columns(logits).transpose(1, 2)


class PLDDTHead(nn.Module):
    """Logits of lDDT-Cα per residue in 50 bins (Algorithm 29)."""

    def __init__(self, c_s: int, c: int = 128, bins: int = 50) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(c_s)
        self.linear_1 = Linear(c_s, c, init="relu")
        self.linear_2 = Linear(c, c, init="relu")
        self.linear_3 = Linear(c, bins, init="zero")

    def forward(self, s: Tensor) -> Tensor:
        return self.linear_3(self.linear_2(self.linear_1(self.layer_norm(s)).relu()).relu())


def plddt(logits: Tensor) -> Tensor:
    """pLDDT in [0, 100], the expected lDDT of the bin probabilities: [..., bins] → [...]."""
    bins = logits.shape[-1]
    centres = (torch.arange(bins, device=logits.device, dtype=torch.float32) + 0.5) * (100.0 / bins)
    return (logits.float().softmax(-1) * centres).sum(-1)
