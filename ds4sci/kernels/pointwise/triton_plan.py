"""Launches of the functions of ``triton.py``. Accepts tensors on the meta device, for ahead-of-time compilation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.kernels.pointwise.triton_configs import MAX_CHANNELS, MAX_COLUMN_CHANNELS, Config, choose
from ds4sci.kernels.triton_launch import Launch

MAX_PROGRAMS = 1024
"""Maximum programs that compute sums: a few waves on any GPU. A constant, so that the order does not depend on it."""
SCRATCH_BYTES = 2**24
"""Maximum bytes of their partial sums, unless a single one takes more."""
PARTIAL_ROWS, CHANNELS = 64, 32
"""Tile size of the kernel that adds partial sums."""

Sums = Sequence[Tensor]


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y: Tensor, mean: Tensor, rstd: Tensor
) -> list[Launch]:
    config, whole = _config("norm", x, x.shape[-1])
    length, planes, (strides,) = _rows(x)
    arguments = {
        "x": x, "weight": weight.contiguous(), "bias": _dense(bias), "y": y, "mean": mean, "rstd": rstd,
        "x_strides": strides, "rows": len(y), "length": length, "eps": eps,
    }  # fmt: skip
    constants = whole | {"PLANES": planes, "ROWS": config.others}
    return [_launch("norm", _tiles(len(y), config), arguments, constants, config)]


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor, sums: Sums
) -> list[Launch]:
    config, whole = _config("norm_backward", x, x.shape[-1])
    length, planes, (strides, out_strides) = _rows(x, out)
    parts, partial = _partial(_tiles(len(grad), config), 1, x.shape[-1], sums, grad.device)
    arguments = {
        "grad": grad, "x": x, "mean": mean, "rstd": rstd, "weight": weight.contiguous(), "out": out,
        "weight_sums": partial[0], "bias_sums": partial[1], "grad_strides": grad.stride(), "x_strides": strides,
        "out_strides": out_strides, "rows": len(grad), "length": length,
    }  # fmt: skip
    constants = whole | {"PLANES": planes, "ROWS": config.others}
    return [_launch("norm_backward", parts, arguments, constants, config), *_add(partial, sums)]


def norm_columns(
    p: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y: Tensor, mean: Tensor, rstd: Tensor
) -> list[Launch]:
    config, whole = _config("norm_columns", p, len(p))
    arguments = {
        "p": p, "weight": weight.contiguous(), "bias": _dense(bias), "y": y, "mean": mean, "rstd": rstd,
        "p_strides": p.stride(), "columns": p.shape[1], "eps": eps,
    }  # fmt: skip
    return [_launch("norm_columns", _tiles(p.shape[1], config), arguments, whole | {"COLUMNS": config.others}, config)]


def norm_columns_backward(
    grad: Tensor, p: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, out: Tensor, sums: Sums
) -> list[Launch]:
    config, whole = _config("norm_columns_backward", p, len(p))
    parts, partial = _partial(_tiles(p.shape[1], config), 1, len(p), sums, p.device)
    arguments = {
        "grad": grad, "p": p, "mean": mean, "rstd": rstd, "weight": weight.contiguous(), "out": out,
        "weight_sums": partial[0], "bias_sums": partial[1], "grad_strides": grad.stride(), "p_strides": p.stride(),
        "out_strides": out.stride(), "columns": p.shape[1],
    }  # fmt: skip
    constants = whole | {"COLUMNS": config.others}
    return [_launch("norm_columns_backward", parts, arguments, constants, config), *_add(partial, sums)]


def glu_columns(joint: Tensor, bias: Tensor | None, mask: Tensor | None, out: Tensor) -> list[Launch]:
    channels, columns = out.shape
    config = choose("columns", channels, joint.itemsize * 8)
    arguments = {
        "joint": joint, "bias": _dense(bias), "mask": _as_uint8(mask), "out": out, "joint_strides": joint.stride(),
        "out_strides": out.stride(), "mask_stride": 0 if mask is None else mask.stride(0), "channels": channels,
        "columns": columns,
    }  # fmt: skip
    return [_by_columns("glu_columns", _tiles(columns, config) * _blocks(channels, config), arguments, config)]


def glu_columns_backward(
    grad: Tensor, joint: Tensor, bias: Tensor | None, mask: Tensor | None, sums: Tensor | None
) -> list[Launch]:
    channels, columns = grad.shape
    config = choose("columns_backward", channels, joint.itemsize * 8)
    halves = () if sums is None else sums.chunk(2)
    blocks = _blocks(channels, config)
    parts, partial = _partial(_tiles(columns, config), blocks, channels, halves, joint.device)
    arguments = {
        "grad": grad, "joint": joint, "bias": _dense(bias), "mask": _as_uint8(mask), "u_sums": partial[0],
        "v_sums": partial[1], "grad_strides": grad.stride(), "joint_strides": joint.stride(),
        "mask_stride": 0 if mask is None else mask.stride(0), "channels": channels, "columns": columns,
    }  # fmt: skip
    return [_by_columns("glu_columns_backward", parts * blocks, arguments, config), *_add(partial, halves)]


def gate(
    value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None, out: Tensor
) -> list[Launch]:
    rows, channels = value.shape
    config = choose("rows", channels, value.itemsize * 8)
    length, planes, (strides,) = _rows(out)
    arguments = {
        "value": value, "value_bias": _dense(value_bias), "logits": logits, "logits_bias": _dense(logits_bias),
        "out": out, "value_strides": value.stride(), "logits_strides": logits.stride(), "out_strides": strides,
        "rows": rows, "length": length, "channels": channels,
    }  # fmt: skip
    programs = _tiles(rows, config) * _blocks(channels, config)
    return [_by_rows("gate", programs, arguments, config, PLANES=planes)]


def gate_backward(
    grad: Tensor, value: Tensor, value_bias: Tensor | None, logits: Tensor, logits_bias: Tensor | None,
    value_sums: Tensor | None, logits_sums: Tensor | None,
) -> list[Launch]:  # fmt: skip
    rows, channels = value.shape
    config = choose("rows_backward", channels, value.itemsize * 8)
    sums = [x for x in (value_sums, logits_sums) if x is not None]
    blocks = _blocks(channels, config)
    parts, partial = _partial(_tiles(rows, config), blocks, channels, sums, value.device)
    arguments = {
        "grad": grad, "value": value, "value_bias": _dense(value_bias), "logits": logits,
        "logits_bias": _dense(logits_bias), "value_sums": None if value_sums is None else partial[0],
        "logits_sums": None if logits_sums is None else partial[len(sums) - 1], "grad_strides": grad.stride(),
        "value_strides": value.stride(), "logits_strides": logits.stride(), "rows": rows, "channels": channels,
    }  # fmt: skip
    return [_by_rows("gate_backward", parts * blocks, arguments, config), *_add(partial, sums)]


def relu(hidden: Tensor, bias: Tensor | None) -> list[Launch]:
    rows, channels = hidden.shape
    config = choose("rows", channels, hidden.itemsize * 8)
    arguments = {
        "hidden": hidden, "bias": _dense(bias), "strides": hidden.stride(), "rows": rows, "channels": channels,
    }  # fmt: skip
    return [_by_rows("relu", _tiles(rows, config) * _blocks(channels, config), arguments, config)]


def relu_backward(grad: Tensor, hidden: Tensor, sums: Tensor | None) -> list[Launch]:
    rows, channels = grad.shape
    config = choose("rows_backward", channels, grad.itemsize * 8)
    totals = () if sums is None else (sums,)
    blocks = _blocks(channels, config)
    parts, partial = _partial(_tiles(rows, config), blocks, channels, totals, grad.device)
    arguments = {
        "grad": grad, "hidden": hidden, "sums": partial[0], "grad_strides": grad.stride(),
        "hidden_strides": hidden.stride(), "rows": rows, "channels": channels,
    }  # fmt: skip
    return [_by_rows("relu_backward", parts * blocks, arguments, config), *_add(partial, totals)]


def swiglu(joint: Tensor, bias: Tensor | None, out: Tensor) -> list[Launch]:
    rows, channels = out.shape
    config = choose("rows", channels, joint.itemsize * 8)
    arguments = {
        "joint": joint, "bias": _dense(bias), "out": out, "joint_strides": joint.stride(), "rows": rows,
        "channels": channels,
    }  # fmt: skip
    return [_by_rows("swiglu", _tiles(rows, config) * _blocks(channels, config), arguments, config)]


def swiglu_backward(grad: Tensor, joint: Tensor, bias: Tensor | None, sums: Tensor | None) -> list[Launch]:
    rows, channels = grad.shape
    config = choose("rows_backward", channels, joint.itemsize * 8)
    halves = () if sums is None else sums.chunk(2)
    blocks = _blocks(channels, config)
    parts, partial = _partial(_tiles(rows, config), blocks, channels, halves, joint.device)
    arguments = {
        "grad": grad, "joint": joint, "bias": _dense(bias), "u_sums": partial[0], "v_sums": partial[1],
        "grad_strides": grad.stride(), "joint_strides": joint.stride(), "rows": rows, "channels": channels,
    }  # fmt: skip
    return [_by_rows("swiglu_backward", parts * blocks, arguments, config), *_add(partial, halves)]


def column_sums(x: Tensor, sums: Tensor) -> list[Launch]:
    rows, channels = x.shape
    config = choose("rows_backward", channels, x.itemsize * 8)
    blocks = _blocks(channels, config)
    parts, partial = _partial(_tiles(rows, config), blocks, channels, (sums,), x.device)
    arguments = {"x": x, "sums": partial[0], "strides": x.stride(), "rows": rows, "channels": channels}
    return [_by_rows("column_sums", parts * blocks, arguments, config), *_add(partial, (sums,))]


def _config(purpose: str, x: Tensor, channels: int) -> tuple[Config, dict[str, Any]]:
    """Config of a kernel whose tiles have all channels, and its constants."""
    limit = MAX_COLUMN_CHANNELS if "columns" in purpose else MAX_CHANNELS
    if channels > limit:
        raise ValueError(f"{purpose} takes up to {limit} channels in Triton, not {channels}; 'tiled' takes any number")
    config = choose(purpose, channels, x.itemsize * 8)
    return config, {"CHANNELS": channels, "PADDED": config.channels}


def _tiles(others: int, config: Config) -> int:
    return -(-others // config.others)


def _blocks(channels: int, config: Config) -> int:
    return -(-channels // config.channels)


def _launch(kernel: str, programs: int, arguments: dict[str, Any], constants: dict[str, Any], config: Config) -> Launch:
    return Launch(kernel, programs, arguments, constants, config.warps, 1)


def _by_rows(kernel: str, programs: int, arguments: dict[str, Any], config: Config, **constants: Any) -> Launch:
    sizes = {"ROWS": config.others, "CHANNELS": config.channels}
    return _launch(kernel, programs, arguments, sizes | constants, config)


def _by_columns(kernel: str, programs: int, arguments: dict[str, Any], config: Config) -> Launch:
    return _launch(kernel, programs, arguments, {"CHANNELS": config.channels, "COLUMNS": config.others}, config)


def _rows(*tensors: Tensor) -> tuple[int, bool, list[tuple[int, ...]]]:
    """Rows [..., c] as planes of rows: the length of a plane, whether there are several planes, and the strides of
    plane, row and channel of each tensor. If the rows of all tensors are evenly spaced, there is one plane."""
    views = [_planes(x) for x in tensors]
    length = views[0].shape[1]
    if all(x.stride(0) == length * x.stride(1) or x.shape[0] == 1 for x in views):
        return 1, False, [(0, *x.stride()[1:]) for x in views]
    if length == 1:
        return 1, False, [(0, x.stride(0), x.stride(2)) for x in views]
    return length, True, [x.stride() for x in views]


def _planes(x: Tensor) -> Tensor:
    """x [..., c] as a view [planes, rows, c]."""
    shape = (1, 1, *x.shape)[-3:] if x.dim() < 3 else (math.prod(x.shape[:-2]), *x.shape[-2:])
    try:
        return x.view(shape)
    except RuntimeError as error:
        raise ValueError(
            f"rows may have at most two strides; got {tuple(x.shape)} with strides {x.stride()}"
        ) from error


def _dense(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def _as_uint8(mask: Tensor | None) -> Tensor | None:
    return mask.view(torch.uint8) if mask is not None and mask.dtype == torch.bool else mask


def _partial(
    tiles: int, blocks: int, channels: int, sums: Sums, device: torch.device
) -> tuple[int, Tensor | tuple[None, None]]:
    """Number of programs that share a block of channels, and their partial sums [1 or 2, programs, c].

    Without sums there is one program per tile.
    """
    if not sums:
        return tiles, (None, None)
    limit = min(MAX_PROGRAMS // blocks, SCRATCH_BYTES // (4 * len(sums) * channels))
    parts = min(tiles, max(1, limit))
    return parts, torch.empty((len(sums), parts, channels), dtype=torch.float32, device=device)


def _add(partial: Tensor | tuple[None, None], sums: Sums) -> list[Launch]:
    """Launch that adds the partial sums to ``sums`` in order."""
    if not isinstance(partial, Tensor) or not partial.shape[1]:
        return []
    count, parts, channels = partial.shape
    arguments = {
        "partial": partial, "first": sums[0], "second": sums[1] if count == 2 else None,
        "strides": (sums[0].stride(0), sums[-1].stride(0)), "parts": parts, "channels": channels,
    }  # fmt: skip
    programs = count * -(-channels // CHANNELS)
    return [Launch("add", programs, arguments, {"PARTIAL_ROWS": PARTIAL_ROWS, "CHANNELS": CHANNELS}, 4, 1)]
