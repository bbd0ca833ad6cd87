"""Pair bias in tiles of pairs: saves only z and never materializes its layer norm.

With AVX2 or AVX-512, ``native`` is one call of C++ (``norm_linear``); else the products are torch's, on tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.norm_linear import NativeNormLinear, serves
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import MatmulGradAccumulator, OptionalLayerNorm, fill_missing_grads, tile_slices


def forward(
    z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, eps: float, implementation: str
) -> Tensor:
    b, q, k, c = z.shape
    out = z.new_empty(b, len(weight), q, k)
    if serves(implementation):
        layer = NativeNormLinear(norm_weight, norm_bias, weight, None, eps, channels_first=True)
        for x, o in zip(z, out, strict=True):
            layer.forward(x, o.view(len(weight), -1))
        return out
    norm = OptionalLayerNorm(BACKENDS[implementation], norm_weight, norm_bias, eps)
    for x, o in zip(z, out, strict=True):
        for tile in tile_slices(q, k * c * z.itemsize, z.device):
            torch.mm(
                weight, norm.forward(x[tile])[0].t(), out=o.view(len(weight), -1)[:, tile.start * k : tile.stop * k]
            )
    return out


def backward(
    grad: Tensor,
    z: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    eps: float,
    implementation: str,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    out = torch.empty_like(z)
    if serves(implementation):
        needed = [*needs_grad[1:4], False]
        layer = NativeNormLinear(norm_weight, norm_bias, weight, None, eps, needed, channels_first=True)
        for x, g, o in zip(z, grad, out, strict=True):
            layer.backward(g.reshape(len(weight), -1).contiguous(), x, o)
        return fill_missing_grads(z, [out, *layer.grads()[:3]])
    norm = OptionalLayerNorm(BACKENDS[implementation], norm_weight, norm_bias, eps, needs_grad[1:3])
    grad_weight = MatmulGradAccumulator(weight, needs_grad[3])
    q, k, c = z.shape[1:]
    for x, g, o in zip(z, grad, out, strict=True):
        for tile in tile_slices(q, k * c * z.itemsize, z.device):
            (y, moments), grad_tile = norm.forward(x[tile]), g[:, tile].flatten(1)
            grad_weight.add(grad_tile, y)
            norm.backward(grad_tile.t() @ weight, x[tile], moments, o[tile])
    return fill_missing_grads(z, [out, *norm.grads(), grad_weight.result()])


def fake_impl(z: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, weight: Tensor, *_: object) -> Tensor:
    return z.new_empty(z.shape[0], len(weight), *z.shape[1:3])


CUSTOM_OP = define_custom_op("pair_bias", forward, backward, fake_impl)
