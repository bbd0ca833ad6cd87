"""Shapes of what public functions are given, looked at once, before any implementation reads by address.

C++ and Triton read as many numbers as the shapes of the first input say: a shorter norm, bias or mask would be read
beyond its end. ValueError names what came, its shape and the one expected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layer = tuple[Tensor | None, Tensor | None]
"""Weight and bias; a norm without weight is none."""


def check_shape(name: str, x: Tensor | None, want: Sequence[int], beside: Tensor, what: str) -> None:
    """``x`` is None or of exactly this shape, which follows from that of ``beside``, called ``what``."""
    if x is not None and x.shape != tuple(want):
        raise ValueError(
            f"{name} must be {tuple(want)} beside {what} {tuple(beside.shape)}; it came as {tuple(x.shape)}"
        )


def check_norm(name: str, norm: Layer | None, c: int, beside: Tensor, what: str) -> None:
    """Weight and bias [c] of a layer norm, each of which may be None."""
    if norm is not None:
        check_shape(f"{name} weight", norm[0], (c,), beside, what)
        check_shape(f"{name} bias", norm[1], (c,), beside, what)


def check_linear(name: str, layer: Layer, out: int, c: int, beside: Tensor, what: str) -> None:
    """Weight [out, c] and bias [out], which may be None."""
    check_shape(f"{name} weight", layer[0], (out, c), beside, what)
    check_shape(f"{name} bias", layer[1], (out,), beside, what)


def check_pair_bias(pair_bias: Tensor | None, want: Sequence[int], beside: Tensor, what: str) -> None:
    """None, or floating [b, h, q, k], any of them 1 to broadcast."""
    if pair_bias is None:
        return
    if pair_bias.dim() != 4 or any(a not in (1, b) for a, b in zip(pair_bias.shape, want, strict=True)):
        raise ValueError(
            f"pair_bias must be {tuple(want)} beside {what} {tuple(beside.shape)}, or 1 where it broadcasts; it came "
            f"as {tuple(pair_bias.shape)}"
        )
    if not pair_bias.is_floating_point():
        raise ValueError(f"pair_bias must be floating; it came as {pair_bias.dtype}")


def check_added_mask(mask: Tensor | None) -> None:
    """None, bool, or floating: an integer could be either."""
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask must be bool or floating; it came as {mask.dtype}")


def expand_mask(
    mask: Tensor, want: Sequence[int], beside: Tensor, what: str, *, fewer_dimensions: bool = False
) -> Tensor:
    """``mask`` of the whole shape ``want``: itself, or what broadcasting makes of it.

    fewer_dimensions  leading dimensions may be missing
    """
    if mask.shape == tuple(want):
        return mask
    missing = len(want) - mask.dim()
    if missing < 0 or (missing and not fewer_dimensions) or any(
        a not in (1, b) for a, b in zip(mask.shape, want[missing:], strict=True)
    ):  # fmt: skip
        raise ValueError(
            f"mask must be {tuple(want)} beside {what} {tuple(beside.shape)}, or 1 where it broadcasts; it came as "
            f"{tuple(mask.shape)}"
        )
    return mask.expand(want).contiguous()
