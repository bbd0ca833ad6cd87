"""Heads of distances, pLDDT and predicted aligned errors, and confidence from their logits (supplement 1.9.6–1.9.8)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds4sci.geometry import aligned_error_centres
from ds4sci.nn.linear import LayerNorm, Linear
from ds4sci.parallel.axial import WHOLE, AxialShards

DISTOGRAM_BINS = 64
"""Bins of the distogram."""

ALIGNED_ERROR_BINS = 64
"""Bins of predicted aligned errors."""

PART_ROWS = 32
"""Rows of residue pairs whose probabilities exist at a time."""


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


class AlignedErrors(NamedTuple):
    """Predicted aligned errors Å [r, n] of rows of residue pairs, and predicted TM-scores [r] after their alignment.

    interface_tm  of the residues in other chains; None for a single chain
    """

    error: Tensor
    tm: Tensor
    interface_tm: Tensor | None


def aligned_errors(logits: Tensor, asym_id: Tensor | None = None, rows_asym_id: Tensor | None = None) -> AlignedErrors:
    """Predicted aligned errors and TM-scores of rows of residue pairs, logits [r, n, bins].

    The error of pair ij is ``Σ_b p_ij^b c_b`` with the centres c_b of the bins, for the Cα of residue j in the
    backbone frame of residue i. The TM-score of row i is the expected one after the alignment of that frame,
    ``1/n Σ_j Σ_b p_ij^b / (1 + (c_b / d₀)²)`` with ``d₀ = 1.24 ∛(max(n, 19) - 15) - 1.8`` Å; pTM is its maximum
    over the rows of the chain (supplement 1.9.7). ipTM is the same with the mean over residues j in other chains than
    i (AlphaFold-Multimer, section 2.6), with the d₀ of all n residues.

    logits        of a chain or complex of n residues, without padding; r of its rows
    asym_id       int64 [n], numbers of the chains; rows_asym_id int64 [r], those of the rows

    Beyond the results, memory is that of the probabilities of ``PART_ROWS`` rows. fp32, or fp64 for logits in fp64.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    centres = aligned_error_centres(logits.shape[-1], logits.new_empty(0, dtype=dtype))
    d0 = 1.24 * (max(logits.shape[1], 19) - 15) ** (1 / 3) - 1.8
    score = 1 / (1 + (centres / d0).square())
    error, tm = logits.new_empty(logits.shape[:2], dtype=dtype), logits.new_empty(len(logits), dtype=dtype)
    interface = None
    if asym_id is not None and bool((asym_id != asym_id[0]).any()):
        interface = torch.empty_like(tm)
    for start in range(0, len(logits), PART_ROWS):
        rows = slice(start, start + PART_ROWS)
        probability = logits[rows].to(dtype).softmax(-1)
        error[rows] = probability @ centres
        of_pairs = probability @ score
        tm[rows] = of_pairs.mean(-1)
        if interface is not None and asym_id is not None and rows_asym_id is not None:
            other = rows_asym_id[rows].unsqueeze(-1).ne(asym_id).to(dtype)
            interface[rows] = (of_pairs * other).sum(-1) / other.sum(-1)
    return AlignedErrors(error, tm, interface)


def ranking_confidence(ptm: float, iptm: float) -> float:
    """Score that ranks predictions of a complex: ``0.8 ipTM + 0.2 pTM`` (AlphaFold-Multimer, section 2.6)."""
    return 0.8 * iptm + 0.2 * ptm
