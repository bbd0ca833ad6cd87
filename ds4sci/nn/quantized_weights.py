"""Weights of linear layers in 8 or 4 bits, for inference: stored compressed, decompressed where they are used.

torchao (8 bits) and bitsandbytes (4 bits) compress them. A layer keeps its class and its ``weight``, which is computed
whenever it is read (``torch.nn.utils.parametrize``), so that code which reads weights, such as the fused kernels, needs
no change.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ds4sci.nn.low_rank import merge_low_rank

Format = Literal["int8", "nf4"]
"""``int8``: w ≈ q max|row| / 127.5, one scale per row. ``nf4``: 16 levels at quantiles of the normal distribution, one
scale per 64 weights (Dettmers et al. 2023, QLoRA). Bytes per weight: 1 and 0.5625; 4 in fp32."""

FORMATS: tuple[Format, ...] = get_args(Format)

SMALLEST = 4096
"""Weights of a layer below which it stays as it is: it saves nothing, and small layers are often the last ones."""


class _Int8(nn.Module):
    """Weights [m, n] as int8 [m, n] and a scale for each row, fp32 [m, 1]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dtype = weight.dtype

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        library = import_torchao().quantization
        compressed = library.Int8Tensor.from_hp(weight, library.PerRow())
        return compressed.qdata, compressed.scale

    def forward(self, rows: Tensor, scales: Tensor) -> Tensor:
        return (rows * scales).to(self.dtype)


class _Nf4(nn.Module):
    """Weights [m, n] as uint8 [m n / 2, 1], two to a byte, and the largest magnitude of every 64, fp32 [m n / 64]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        library = import_bitsandbytes().functional
        packed, state = library.quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=64)
        return packed, state.absmax

    def forward(self, packed: Tensor, largest: Tensor) -> Tensor:
        library = import_bitsandbytes().functional
        state = library.QuantState(
            absmax=largest, shape=self.shape, dtype=self.dtype, blocksize=64, quant_type="nf4",
            code=library.get_4bit_type("nf4", device=packed.device),
        )  # fmt: skip
        return cast(Tensor, library.dequantize_4bit(packed, state))


_COMPRESSIONS: dict[Format, type[_Int8 | _Nf4]] = {"int8": _Int8, "nf4": _Nf4}


def import_bitsandbytes() -> Any:
    """Return the package of the 4-bit format. Raises ValueError if it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        raise ValueError("weights in nf4 need bitsandbytes: pip install 'ds4sci[quantize]'") from None
    return bitsandbytes


def import_torchao() -> Any:
    """Return the package of the 8-bit format. Raises ValueError if it is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # without a GPU, it warns of every CUDA library that it cannot load
    try:
        import torchao.quantization
    except ImportError:
        raise ValueError("weights in int8 need torchao: pip install 'ds4sci[quantize]'") from None
    finally:
        logging.disable(before)
    return torchao


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name → linear layer of ``model`` that is compressed: those of at least ``SMALLEST`` weights.

    Of a transformers model only the layers of its backbone, since the head determines the logits; and no layer whose
    weight another module shares. Raises ValueError for a model without such layers.
    """
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    inside = {id(module) for module in (backbone if isinstance(backbone, nn.Module) else model).modules()}
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and id(layer) in inside
        and not parametrize.is_parametrized(layer)
        and layer.weight.numel() >= SMALLEST
        and owners[id(layer.weight)] == 1
    }
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no torch.nn.Linear with at least {SMALLEST:,} weights of its own, so there is "
            "nothing to quantize"
        )
    return layers


@runtime_checkable
class Quantizable(Protocol):
    """A model that prepares itself before its weights are compressed, such as one with adapters to merge."""

    def quantize(self, format: Format) -> None:
        """Do what ``quantize_weights`` does."""


def quantize_weights(model: nn.Module, format: Format) -> None:
    """Compress the weights of ``quantizable_layers(model)`` in place, after merging adapters (``nn.low_rank``).

    Gradients of them are then no longer possible.

    Raises ValueError for an unknown format and a model without such layers, and without the library of the format.
    """
    if format not in _COMPRESSIONS:
        raise ValueError(f"quantize = {format!r}: expected one of {', '.join(FORMATS)}")
    if isinstance(model, Quantizable):
        model.quantize(format)
        return
    merge_low_rank(model)
    for layer in quantizable_layers(model).values():
        layer.weight.requires_grad_(False)
        compression = _COMPRESSIONS[format](layer.weight)
        with torch.no_grad():
            parametrize.register_parametrization(layer, "weight", compression, unsafe=True)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of ``model``, as stored."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
