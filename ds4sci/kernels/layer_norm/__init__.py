"""Layer norm over the last axis: ``(x - mean) / sqrt(var + eps) · weight + bias``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels.input_checks import check_norm
from ds4sci.kernels.layer_norm import fused
from ds4sci.kernels.layer_norm.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.pointwise import implementations
from ds4sci.kernels.spec import Kernel


def reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _why_not(
    name: str, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> str | None:
    return "it requires a weight" if weight is None else None


def _fused(name: str) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
        out: Tensor = fused.CUSTOM_OP(x, weight, bias, eps, name)[0]
        return out

    return run


KERNEL = Kernel("layer_norm", reference, implementations(_fused, reference, _why_not), CASES, SIZE_SWEEPS)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """Layer norm of ``x`` [..., c] over c, with ``weight`` and ``bias`` [c]. Returns the shape of x.

    implementation  ``triton``, ``native``  one pass forward and one backward; the gradients of weight and bias are
                                            summed in a fixed order
                    ``tiled``               the same algorithm in plain torch
                    ``reference``           ``torch.nn.functional.layer_norm``

    Raises ValueError for a weight or bias of another shape.
    """
    check_norm("norm", (weight, bias), x.shape[-1], x, "x")
    return KERNEL(x, weight, bias, eps=eps, implementation=implementation)
