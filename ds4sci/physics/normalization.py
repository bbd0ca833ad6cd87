"""Layer and instance normalization by elementary operations, whose derivatives are right to every order.

torch's own operations have a formula for the second derivative in which mean and standard deviation have no graph: from
the third on, derivatives are wrong without an error (pytorch/pytorch#175754, #186256; torch 2.13). The gradient of a
residual with second derivatives is a third derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    """(x - mean) / √(variance + eps) over the last axes; times ``weight``, plus ``bias``. Arguments as in torch."""
    out = _standardize(input, tuple(range(-len(normalized_shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    """The same over all axes of the input [b, c, …] after the second. Arguments as in torch.

    Raises ValueError if the statistics of the input are recorded (training with ``track_running_stats``).
    """
    if running_mean is not None:
        raise ValueError(
            "instance normalization that records statistics has wrong third derivatives in torch; use "
            "track_running_stats=False or eval()"
        )
    out = _standardize(input, tuple(range(2, input.dim())), eps)
    shape = (1, -1, *[1] * (input.dim() - 2))
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _standardize(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * ((centred * centred).mean(axes, keepdim=True) + eps) ** -0.5


class ElementaryNorms(TorchFunctionMode):
    """Context in which torch's layer and instance normalization are those of this module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "layer_norm":
            return layer_norm(*args, **kwargs)
        # by recorded statistics torch's operation is linear, and right
        if name == "instance_norm" and kwargs.get("use_input_stats", args[5] if len(args) > 5 else True):
            return instance_norm(*args, **kwargs)
        return func(*args, **kwargs)
