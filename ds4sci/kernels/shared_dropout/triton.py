"""Shared dropout by a Triton kernel, which with the same seed is its own backward. Importing it imports no Triton."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels import triton_launch
from ds4sci.kernels.triton_launch import Launch

PLACES_PER_MASK = 8
"""Positions along the shared axis that one program multiplies by its mask. Computing the mask takes as long as reading
8 numbers."""
ELEMENTS, WIDTH, WARPS = 2048, 128, 4
"""Elements of a tile, its maximum number of channels, warps per program."""


def why_not(x: Tensor, p: float, axis: int, seed: Tensor, *, starts: tuple[int, int, int] = (0, 0, 0)) -> str | None:
    return triton_launch.why_not(x.device, x.dtype)


def run(launches: Iterable[Launch], device: torch.device) -> None:
    triton_launch.run(launches, kernels(), device)


@functools.cache
def kernels() -> dict[str, Any]:
    """Triton functions by name; the first call imports Triton."""
    from ds4sci.kernels.shared_dropout import triton_drop

    return {"drop": triton_drop.drop}


def plan(x: Tensor, seed: Tensor, p: float, axis: int, starts: Sequence[int], out: Tensor) -> list[Launch]:
    """Launches of ``drop``. Accepts tensors on the meta device."""
    if axis == 2:
        x, out = x.transpose(1, 2), out.transpose(1, 2)
    b, shared, others, channels = x.shape
    width = min(WIDTH, max(4, 1 << (channels - 1).bit_length()))
    rows = ELEMENTS // width
    keep_scale = (torch.ones((), device="cpu") / (1 - p)).to(x.dtype).item()  # rounded like the reference's mask
    arguments = {
        "x": x, "seed": seed, "out": out, "x_strides": x.stride(), "out_strides": out.stride(),
        "starts": tuple(starts), "shared": shared, "others": others, "channels": channels,
        "threshold": round(p * 2**32), "keep_scale": keep_scale,
    }  # fmt: skip
    programs = b * -(-shared // PLACES_PER_MASK) * -(-others // rows) * -(-channels // width)
    return [
        Launch(
            "drop",
            programs,
            arguments,
            {"AXIS": axis, "PLACES_PER_MASK": PLACES_PER_MASK, "ROWS": rows, "CHANNELS": width},
            WARPS,
            1,
        )
    ]


@torch.library.custom_op("ds4sci::shared_dropout", mutates_args=())
def drop(x: Tensor, seed: Tensor, p: float, axis: int, starts: Sequence[int]) -> Tensor:
    out = torch.empty_like(x)
    run(plan(x, seed.to(x.device, non_blocking=True), p, axis, starts, out), x.device)
    return out


@drop.register_fake
def _(x, seed, p, axis, starts):
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, *ctx.options = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.ds4sci.shared_dropout(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


drop.register_autograd(_backward, setup_context=_setup_context)


def shared_dropout(x: Tensor, p: float, axis: int, seed: Tensor, *, starts: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    out: Tensor = drop(x, seed, p, axis, starts)
    return out
