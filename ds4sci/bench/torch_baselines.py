"""Baselines of the attention benchmark: the methods that torch users have instead of ``evoformer_attention``.

Each is a function of q, k, v ``[b, s, n, h, d]``, a bool mask ``[b, s, n]`` and a pair bias ``[b, h, n, n]`` or None.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.kernels import KERNELS

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Baseline:
    """Function to compare with. ``has_backward``: it has gradients on this device."""

    run: Function
    has_backward: bool = True


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """Attention as in most models: the full score matrix, softmax, product."""
    return KERNELS["evoformer_attention"].reference(q, k, v, mask, pair_bias)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """``scaled_dot_product_attention`` with mask and bias summed into one additive mask."""
    added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -1e4)[:, :, None, None, :]
    if pair_bias is not None:
        added = added + pair_bias.unsqueeze(1)
    summed = added.expand(*added.shape[:2], q.shape[3], q.shape[2], k.shape[2]).flatten(0, 1)
    queries, keys, values = (x.transpose(2, 3).flatten(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=summed)
    return out.unflatten(0, q.shape[:2]).transpose(2, 3)


def chunked(function: Function, rows: int) -> Function:
    """``function`` applied to ``rows`` rows at a time, as in low-memory attention."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
        parts = zip(*(x.split(rows, dim=1) for x in (q, k, v, mask)), strict=True)
        return torch.cat([function(*part, pair_bias) for part in parts], dim=1)

    return run


def checkpointed(function: Function) -> Function:
    """``function`` with activation checkpointing: the backward pass recomputes it."""

    def run(**given: Tensor) -> Tensor:
        out: Tensor = checkpoint(lambda: function(**given), use_reentrant=False)
        return out

    return run


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """FlexAttention with mask and bias applied by its ``score_mod``. Fast only when compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    allowed, rows = mask.flatten(0, 1), q.shape[1]

    def score(value: Tensor, row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if pair_bias is not None:
            value = value + pair_bias[row // rows, head, i, j]
        return torch.where(allowed[row, j], value, -float("inf"))

    queries, keys, values = (x.transpose(2, 3).flatten(0, 1).contiguous() for x in (q, k, v))
    out: Tensor = flex_attention(queries, keys, values, score_mod=score)
    return out.unflatten(0, q.shape[:2]).transpose(2, 3)


def ds4sci_upstream(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """The CUDA kernel of DeepSpeed4Science."""
    from deepspeed.ops.deepspeed4science import DS4Sci_EvoformerAttention

    added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -1e4)[:, :, None, None, :]
    biases = [added] if pair_bias is None else [added, pair_bias.unsqueeze(1)]
    out: Tensor = DS4Sci_EvoformerAttention(q, k, v, biases)
    return out


def cuequivariance(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """NVIDIA's closed-source kernel. It takes q, k, v as ``[b, s, h, n, d]``."""
    from cuequivariance_torch import triangle_attention

    if pair_bias is None:
        pair_bias = q.new_zeros(q.shape[0], q.shape[3], q.shape[2], k.shape[2])
    queries, keys, values = (x.transpose(2, 3) for x in (q, k, v))
    out: Tensor = triangle_attention(queries, keys, values, pair_bias.unsqueeze(1), mask[:, :, None, None, :])
    return out.transpose(2, 3)


def trifast(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """The Triton kernel of trifast, for s = n only. It takes q, k, v as ``[b, h, s, n, d]``; its mask is True for
    positions to ignore."""
    from trifast import triangle_attention

    if pair_bias is None:
        pair_bias = q.new_zeros(q.shape[0], q.shape[3], q.shape[2], k.shape[2])
    queries, keys, values = (x.permute(0, 3, 1, 2, 4).contiguous() for x in (q, k, v))
    out: Tensor = triangle_attention(queries, keys, values, pair_bias.contiguous(), ~mask)
    return out.permute(0, 2, 3, 1, 4)


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def torch_baselines(device: torch.device, *, compiled: bool) -> dict[str, Baseline]:
    """Baselines that run on this device with the installed packages. ``compiled`` adds those that need
    torch.compile."""
    found = {"naive": naive, "SDPA": sdpa, "checkpointed": checkpointed(naive)}
    found |= {f"chunked {rows}": chunked(naive, rows) for rows in (1, 4, 16)}
    found |= {f"chunked SDPA {rows}": chunked(sdpa, rows) for rows in (1, 4, 16)}
    known = {name: Baseline(function) for name, function in found.items()}
    if compiled:
        known["compiled"] = Baseline(torch.compile(naive, dynamic=False))
        known["FlexAttention"] = Baseline(torch.compile(flex, dynamic=False), has_backward=device.type == "cuda")
    if device.type == "cuda":
        if _installed("deepspeed"):
            known["DS4Sci_EvoformerAttention"] = Baseline(ds4sci_upstream)
        if _installed("cuequivariance_torch"):
            known["cuEquivariance"] = Baseline(cuequivariance)
        if _installed("trifast"):
            known["trifast"] = Baseline(trifast)
    return known
