"""Features of the alignment in a recycling pass, from the sample that was drawn for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ds4sci.types import Batch, MsaSample


def batch_of_pass(batch: Batch, number: int) -> Batch:
    """Return ``batch`` with the features of recycling pass ``number``, counted from 0 to ``batch.recycling`` − 1.

    ``msa_feat`` and ``extra_msa_feat`` are those of ``batch.earlier_msa``. Masks are the same in every pass, and
    ``true_msa`` and ``masked_msa`` those of the last pass, the only one with a loss. Memory: one more ``msa_feat`` and
    ``extra_msa_feat``, until the pass has embedded them.
    """
    if batch.earlier_msa is None:
        return batch
    msa_feat, extra_msa_feat = batch.msa_feat.clone(), batch.extra_msa_feat.clone()
    for samples, *own in zip(batch.earlier_msa, msa_feat, extra_msa_feat, strict=True):
        if samples is not None:
            _expand(samples[number], *own)
    return replace(batch, msa_feat=msa_feat, extra_msa_feat=extra_msa_feat)


def _expand(sample: MsaSample, msa_feat: Tensor, extra_msa_feat: Tensor) -> None:
    """Write the features of ``sample`` into those of the last pass, which have the same rows, residues and padding."""
    for out, letters, deletions in (
        (msa_feat, sample.letters, sample.deletion_values),
        (extra_msa_feat, sample.extra_letters, sample.extra_deletion_values),
    ):
        rows, n = letters.shape
        own, values = out[:rows, :n], torch.from_numpy(deletions).to(out)
        own[..., :23] = 0
        own.scatter_(-1, torch.from_numpy(letters).to(out.device).long().unsqueeze(-1), 1.0)
        own[..., 23] = values > 0
        own[..., 24] = values
    rows, n = sample.letters.shape
    msa_feat[:rows, :n, 25:48] = torch.from_numpy(sample.profile).to(msa_feat)
    msa_feat[:rows, :n, 48] = torch.from_numpy(sample.deletion_means).to(msa_feat)
