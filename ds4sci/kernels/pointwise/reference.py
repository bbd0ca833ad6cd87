"""Pointwise functions between matrix products in plain torch, for any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.dtypes import accumulation_dtype


def why_not(x: Tensor) -> str | None:
    """One sentence that says why this backend cannot process tiles of x, or None."""
    return None


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of x [..., c], in fp32 (fp64 for fp64): y [rows, c] in x's dtype, mean and rstd [rows] in fp32."""
    kind, c = accumulation_dtype(x.dtype), x.shape[-1:]
    shift = None if bias is None else bias.to(kind)
    y, mean, rstd = torch.native_layer_norm(x.to(kind), c, weight.to(kind), shift, eps)
    return y.to(x.dtype).view(-1, *c), mean.flatten(), rstd.flatten()


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    """Write the gradient of x to ``out`` (like x; may share memory with ``grad``), from ``grad`` [rows, c] of y.

    The gradients of weight and bias are added to ``sums``.
    """
    kind = accumulation_dtype(x.dtype)
    g, centred = grad.to(kind), x.reshape(-1, x.shape[-1]).to(kind) - mean.unsqueeze(-1)
    scaled = centred * rstd.unsqueeze(-1)
    if sums is not None:
        sums[0].add_((g * scaled).sum(0))
        sums[1].add_(g.sum(0))
    g = g * weight.to(kind)
    inner = g - g.mean(-1, keepdim=True) - scaled * (g * scaled).mean(-1, keepdim=True)
    out.copy_((inner * rstd.unsqueeze(-1)).view(out.shape))


def norm_columns(p: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the first axis of p [c, columns]; y is rows [columns, c]."""
    return norm(p.t(), weight, bias, eps)


def norm_columns_backward(
    grad: Tensor, p: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor,
    sums: tuple[Tensor, Tensor] | None,
) -> None:  # fmt: skip
    """``norm_backward`` of ``norm_columns``: ``grad`` [columns, c], ``out`` [c, columns]."""
    norm_backward(grad, p.t(), mean, rstd, weight, out.t(), sums)


def glu_columns(joint: Tensor, bias: Tensor | None, mask: Tensor | None, out: Tensor) -> None:
    """``out = (u + b_u) · sigmoid(v + b_v) · mask`` [c, columns], ``[u, v] = joint`` [2c, columns], mask [columns]."""
    u, v = (joint if bias is None else joint + bias.unsqueeze(-1)).chunk(2)
    torch.mul(u, torch.sigmoid(v), out=out)
    if mask is not None:
        out.mul_(mask)


def glu_columns_backward(
    grad: Tensor, joint: Tensor, bias: Tensor | None, mask: Tensor | None, sums: Tensor | None
) -> None:
    """Replace ``joint`` by its gradient, from ``grad`` [c, columns]; add that of the bias to ``sums`` [2c]."""
    u, v = (joint if bias is None else joint + bias.unsqueeze(-1)).chunk(2)
    gate = torch.sigmoid(v)
    g = grad if mask is None else grad * mask
    both = torch.cat([g * gate, g * u * gate * (1 - gate)])
    joint.copy_(both)
    if sums is not None:
        sums.add_(both.sum(1, dtype=accumulation_dtype(both.dtype)))


def gate(value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None, out: Tensor) -> None:
    """``out = (value + b) · sigmoid(logits + b')``, all [rows, c]."""
    value = value if value_bias is None else value + value_bias
    logits = logits if logits_bias is None else logits + logits_bias
    out.copy_((value * torch.sigmoid(logits)).view(out.shape))


def gate_backward(
    grad: Tensor, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None,
    value_sums: Tensor | None, logits_sums: Tensor | None,
) -> None:  # fmt: skip
    """Replace ``value`` and ``logits`` by their gradients; add those of the biases to the sums [c]."""
    shifted = value if value_bias is None else value + value_bias
    gate = torch.sigmoid(logits if logits_bias is None else logits + logits_bias)
    torch.mul(grad, shifted * gate * (1 - gate), out=logits)
    torch.mul(grad, gate, out=value)
    for x, sums in ((value, value_sums), (logits, logits_sums)):
        if sums is not None:
            sums.add_(x.sum(0, dtype=accumulation_dtype(x.dtype)))


def relu(hidden: Tensor, bias: Tensor | None) -> Tensor:
    """``max(hidden + b, 0)`` in place of hidden [rows, f]."""
    return (hidden if bias is None else hidden.add_(bias)).relu_()


def relu_backward(grad: Tensor, hidden: Tensor, sums: Tensor | None) -> None:
    """Set ``grad`` [rows, f] to 0 where the output ``hidden`` of relu is 0; add the bias gradient to ``sums`` [f]."""
    grad.mul_(hidden > 0)
    if sums is not None:
        sums.add_(grad.sum(0, dtype=accumulation_dtype(grad.dtype)))


def swiglu(joint: Tensor, bias: Tensor | None) -> Tensor:
    """``silu(u + b_u) · (v + b_v)`` [rows, f] with ``[u, v] = joint`` [rows, 2f]."""
    u, v = (joint if bias is None else joint + bias).chunk(2, dim=-1)
    return F.silu(u) * v


def swiglu_backward(grad: Tensor, joint: Tensor, bias: Tensor | None, sums: Tensor | None) -> None:
    """Replace ``joint`` by its gradient, from ``grad`` [rows, f]; add that of the bias to ``sums`` [2f]."""
    u, v = (joint if bias is None else joint + bias).chunk(2, dim=-1)
    gate = torch.sigmoid(u)
    both = torch.cat([grad * v * gate * (1 + u * (1 - gate)), grad * u * gate], dim=-1)
    joint.copy_(both)
    if sums is not None:
        sums.add_(both.sum(0, dtype=accumulation_dtype(both.dtype)))


def column_sums(x: Tensor, sums: Tensor) -> None:
    """Add the sum over the rows of x [rows, c] to ``sums`` [c]."""
    sums.add_(x.sum(0, dtype=accumulation_dtype(x.dtype)))
