"""Evoformer attention: ``out = softmax(q kᵀ · scale + mask + pair_bias) v``, gated by ``sigmoid(gate)``."""

from __future__ import annotations

from torch import Tensor

from ds4sci.kernels.evoformer_attention.reference import reference
from ds4sci.kernels.spec import reference_only

KERNEL = reference_only("evoformer_attention", reference)


def evoformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Attention over n within each of s rows, with a bias that all rows share (AlphaFold 2, Algorithms 7, 8, 13, 14).

    q ``[b, s, q, h, d]``, k and v ``[b, s, k, h, d]``, any strides: a transposed view is column attention.
    ``mask`` ``[b, s, k]``: bool, True = key takes part, or a float added to the scores.
    ``pair_bias`` ``[b, h, q, k]``, broadcastable. ``gate`` like q: the output is multiplied by ``sigmoid(gate)``.
    ``scale`` defaults to ``d ** -0.5``. Returns ``[b, s, q, h, d]``.

    A query whose keys are all masked (bool) gets 0 and gives no gradient.
    Memory: the reference keeps ``b·s·h·q·k`` scores.
    Raises ValueError when the named implementation cannot run, with its reason.
    """
    return KERNEL(q, k, v, mask, pair_bias, gate, scale=scale, implementation=implementation)
