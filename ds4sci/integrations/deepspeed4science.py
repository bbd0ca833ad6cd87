"""Drop-in replacements for DeepSpeed4Science's evoformer attention and for OpenFold's attention function.

    from ds4sci.integrations.deepspeed4science import DS4Sci_EvoformerAttention

replaces the import from ``deepspeed.ops.deepspeed4science``: any device, dtype, length and head size, deterministic
gradients, no CUTLASS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels import evoformer_attention


def DS4Sci_EvoformerAttention(
    Q: Tensor, K: Tensor, V: Tensor, biases: Sequence[Tensor | None] = (), *, implementation: str | None = None
) -> Tensor:
    """``softmax(Q Kᵀ / √d + bias₁ + bias₂) V`` with the signature of ``deepspeed.ops.deepspeed4science``.

    Q, K, V ``[b, s, n, h, d]``; bias₁ ``[b, s, 1, 1, n]``, bias₂ ``[b, 1, h, n, n]``, either None or omitted. Returns
    ``[b, s, n, h, d]``. Both biases get gradients. ``biases`` is not modified (upstream appends to it). Without biases
    any leading axes are allowed, ``[*, n, h, d]``, as upstream.

    Raises ValueError for other shapes. As upstream, the result is saved for the backward pass, so modifying it in place
    before that raises an error.
    """
    if len(biases) > 2:
        raise ValueError(
            f"biases must hold at most two tensors, [b, s, 1, 1, n] and [b, 1, h, n, n]; got {len(biases)}"
        )
    first, second = (*biases, None, None)[:2]
    if first is None and second is None and Q.dim() >= 3:
        flat = (x.reshape(1, -1, *x.shape[-3:]) for x in (Q, K, V))
        return evoformer_attention(*flat, implementation=implementation).view(Q.shape)
    if Q.dim() != 5:
        raise ValueError(f"Q must be [b, s, n, h, d] if there are biases; got {tuple(Q.shape)}")
    b, s, n, h, _ = Q.shape
    keys = K.shape[2]
    for name, bias, expected in (("biases[0]", first, (b, s, 1, 1, keys)), ("biases[1]", second, (b, 1, h, n, keys))):
        if bias is not None and tuple(bias.shape) != expected:
            raise ValueError(f"{name} must be {expected} for Q {tuple(Q.shape)}; got {tuple(bias.shape)}")
    mask = None if first is None else first[:, :, 0, 0]
    pair_bias = None if second is None else second[:, 0]
    return evoformer_attention(Q, K, V, mask, pair_bias, implementation=implementation)


def attention(
    query: Tensor, key: Tensor, value: Tensor, biases: Sequence[Tensor], *, implementation: str | None = None
) -> Tensor:
    """OpenFold's ``_attention``: ``softmax(query keyᵀ + Σ biases) value``, with the query scaled by the caller.

    query ``[*, h, q, d]``, key and value ``[*, h, k, d]``; biases that broadcast to ``[*, h, q, k]``. Returns
    ``[*, h, q, d]``. The fused kernel takes one bias per key ``[*, 1, 1, k]`` and one pair bias shared by the last
    batch dimension ``[…, 1, h, q, k]``. With other biases plain torch computes the full attention logits.
    """
    *lead, h, n, d = query.shape
    keys = key.shape[-2]
    mask: Tensor | None = None
    pair: Tensor | None = None
    is_supported = len(lead) >= 1
    for bias in biases:
        shape = (*(1,) * (query.dim() - bias.dim()), *bias.shape)
        if shape[-3:-1] == (1, 1) and shape[-1] == keys and mask is None:
            mask = bias.reshape(shape).expand(*lead, 1, 1, keys)[..., 0, 0, :]
        elif len(shape) > 3 and shape[-4] == 1 and pair is None:
            pair = bias.reshape(shape).expand(*lead[:-1], 1, h, n, keys).squeeze(-4)
        else:
            is_supported = False
    if not is_supported:
        scores = query @ key.transpose(-1, -2)
        for bias in biases:
            scores = scores + bias
        return torch.softmax(scores, -1) @ value
    rows = lead[-1]
    q, k, v = (x.reshape(-1, rows, *x.shape[-3:]).transpose(2, 3) for x in (query, key, value))
    out = evoformer_attention(
        q, k, v,
        None if mask is None else mask.reshape(-1, rows, keys),
        None if pair is None else pair.reshape(-1, h, n, keys),
        scale=1.0, implementation=implementation,
    )  # fmt: skip
    return out.transpose(2, 3).reshape(*lead, h, n, d)
