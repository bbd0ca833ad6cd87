"""The outer product mean in readable torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def count(mask: Tensor, mask_b: Tensor, dtype: torch.dtype, eps: float | None) -> Tensor:
    """Divisor of the sums, [b, n_a, n_b, 1]."""
    both = torch.einsum("bsi,bsj->bij", mask.to(dtype), mask_b.to(dtype)).unsqueeze(-1)
    return both.clamp(min=1.0) if eps is None else both + eps


def reference(
    a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, mask_b: Tensor | None = None,
    eps: float | None = 1e-3,
) -> Tensor:  # fmt: skip
    mask_b = mask if mask_b is None else mask_b
    x, y = (x * m.to(x.dtype).unsqueeze(-1) for x, m in ((a, mask), (b, mask_b)))
    outer = torch.einsum("bsic,bsjd->bijcd", x, y).flatten(-2)
    return F.linear(outer, weight, bias) / count(mask, mask_b, a.dtype, eps)
