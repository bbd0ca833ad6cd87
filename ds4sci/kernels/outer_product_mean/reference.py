"""The outer product mean in readable torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def count(mask: Tensor, dtype: torch.dtype, eps: float | None) -> Tensor:
    """Divisor of the sums, [b, n, n, 1]."""
    keep = mask.to(dtype)
    both = torch.einsum("bsi,bsj->bij", keep, keep).unsqueeze(-1)
    return both.clamp(min=1.0) if eps is None else both + eps


def reference(
    a: Tensor, b: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float | None = 1e-3
) -> Tensor:
    keep = mask.to(a.dtype).unsqueeze(-1)
    outer = torch.einsum("bsic,bsjd->bijcd", a * keep, b * keep).flatten(-2)
    return F.linear(outer, weight, bias) / count(mask, a.dtype, eps)
