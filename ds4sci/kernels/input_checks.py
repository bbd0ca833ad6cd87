"""Shape and dtype checks of public functions, before an implementation reads memory by address.

C++ and Triton read as many numbers as the shape of the first input implies: they would read beyond the end of a norm,
bias or mask that is too short. The ValueError names the argument, the expected shape and the shape it got.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor | None, Tensor | None]
"""Weight and bias; (None, None) for a layer norm without parameters."""


def check_shape(name: str, x: Tensor | None, expected: Sequence[int], like: Tensor, like_name: str) -> None:
    """``x`` must be None or have the ``expected`` shape, which follows from ``like``, the argument ``like_name``."""
    if x is not None and x.shape != tuple(expected):
        raise ValueError(f"{name} must be {tuple(expected)} for {like_name} {tuple(like.shape)}; got {tuple(x.shape)}")


def check_norm(name: str, norm: Layer | None, c: int, like: Tensor, like_name: str) -> None:
    """Weight and bias of a layer norm must be None or [c]."""
    if norm is not None:
        check_shape(f"{name} weight", norm[0], (c,), like, like_name)
        check_shape(f"{name} bias", norm[1], (c,), like, like_name)


def check_linear(name: str, layer: Layer, out: int, c: int, like: Tensor, like_name: str) -> None:
    """The weight must be [out, c], the bias None or [out]."""
    check_shape(f"{name} weight", layer[0], (out, c), like, like_name)
    check_shape(f"{name} bias", layer[1], (out,), like, like_name)


def check_pair_bias(pair_bias: Tensor | None, expected: Sequence[int], like: Tensor, like_name: str) -> None:
    """The pair bias must be None, or floating-point [b, h, q, k] where any dimension may be 1."""
    if pair_bias is None:
        return
    if pair_bias.dim() != 4 or any(a not in (1, b) for a, b in zip(pair_bias.shape, expected, strict=True)):
        raise ValueError(
            f"pair_bias must be {tuple(expected)} for {like_name} {tuple(like.shape)}, or 1 where it broadcasts; got "
            f"{tuple(pair_bias.shape)}"
        )
    if not pair_bias.is_floating_point():
        raise ValueError(f"pair_bias must be floating-point; got {pair_bias.dtype}")


def check_added_mask(mask: Tensor | None) -> None:
    """The mask must be None, bool or floating-point: the meaning of an integer would be ambiguous."""
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask must be bool or floating-point; got {mask.dtype}")


def expand_mask(
    mask: Tensor, expected: Sequence[int], like: Tensor, like_name: str, *, fewer_dimensions: bool = False,
    name: str = "mask",
) -> Tensor:  # fmt: skip
    """``mask``, the argument ``name``, expanded to the ``expected`` shape.

    fewer_dimensions  leading dimensions may be missing
    """
    if mask.shape == tuple(expected):
        return mask
    missing = len(expected) - mask.dim()
    if missing < 0 or (missing and not fewer_dimensions) or any(
        a not in (1, b) for a, b in zip(mask.shape, expected[missing:], strict=True)
    ):  # fmt: skip
        raise ValueError(
            f"{name} must be {tuple(expected)} for {like_name} {tuple(like.shape)}, or 1 where it broadcasts; got "
            f"{tuple(mask.shape)}"
        )
    return mask.expand(expected).contiguous()
