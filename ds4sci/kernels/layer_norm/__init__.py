"""Layer norm over the last axis: ``(x - mean) / sqrt(var + eps) · weight + bias``."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.spec import reference_only


def reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


KERNEL = reference_only("layer_norm", reference)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """Normalise ``x`` [..., c] over c; ``weight`` and ``bias`` [c]. Returns the shape of x."""
    return KERNEL(x, weight, bias, eps=eps, implementation=implementation)
