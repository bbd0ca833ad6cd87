"""Triangular multiplicative update as a batched matrix product, with everything else in tiles or blocks of rows.

The projections a and b are computed channels first, [2c', n·n], as the product of a weight and LN(z) transposed: the
contraction over k is then one matrix product per channel, and nothing is transposed in memory. Saves z, the mask and
the result p [c', n, n] of the contraction; backward recomputes a and b, unless ``saves_projections``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ds4sci.kernels.custom_op import define_custom_op
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.tiles import (
    GradAccumulator,
    MatmulGradAccumulator,
    OptionalLayerNorm,
    fill_missing_grads,
    tile_slices,
)
from ds4sci.kernels.triangle_multiplication import native


def empty_channels(z: Tensor, outer: int, channels: int) -> Tensor:
    """Empty [outer, channels, n, n] for z [b, n, n, c], with a cache line between channels.

    Without it, the same rows of all channels compete for few sets of the cache where n is a multiple of 32: their
    distance is then one of pages.
    """
    n, step = z.shape[1], (channels_bytes(z, 1) + 64) // z.itemsize
    return torch.empty_strided((outer, channels, n, n), (channels * step, step, n, 1), dtype=z.dtype, device=z.device)


def channels_bytes(z: Tensor, channels: int) -> int:
    """Bytes of ``empty_channels(z, 1, channels)``."""
    return channels * (z.shape[1] ** 2 * z.itemsize + 64) - 64


class TiledUpdate:
    """The parts of the update of one example, for any number of rows of z [r, n, c], in tiles of rows.

    ``forward`` and ``backward`` below contract in the same process; ``ds4sci.nn.axial_multiplication`` contracts by
    channels over several ranks. a and b are ``ab`` [2c', r·n], p is [c', r·n]. The backward functions add
    to the sums of the gradients of the parameters, which ``grads`` returns.

    parameters  weight and bias of the input norm, of the joint projection (rows of a, b, the gate of a, the gate of b),
                of the output norm, of the output projection and of the output gate
    needs_grad  which of the parameters need gradients
    """

    def __init__(
        self, parameters: Sequence[Tensor | None], eps: float, implementation: str,
        needs_grad: Sequence[bool] = (False,) * 10,
    ) -> None:  # fmt: skip
        norm_in, norm_in_bias, weight_in, bias_in, norm_out, norm_out_bias, weight_out, bias_out, gate, bias_gate = (
            parameters
        )
        assert weight_in is not None
        assert weight_out is not None
        assert gate is not None
        self.pointwise = BACKENDS[implementation]
        self.weight_in, self.bias_in, self.weight_out, self.bias_out = weight_in, bias_in, weight_out, bias_out
        self.weight_gate, self.bias_gate = gate, bias_gate
        self.hidden, self.c = weight_in.shape[0] // 4, weight_in.shape[1]
        self.norm_in = OptionalLayerNorm(self.pointwise, norm_in, norm_in_bias, eps, needs_grad[:2])
        self.norm_out = OptionalLayerNorm(self.pointwise, norm_out, norm_out_bias, eps, needs_grad[4:6])
        self.grad_weight_in, self.grad_bias_in = (
            MatmulGradAccumulator(weight_in, needs_grad[2]),
            GradAccumulator(bias_in, needs_grad[3]),
        )
        self.grad_weight_out, self.grad_bias_out = (
            MatmulGradAccumulator(weight_out, needs_grad[6]),
            GradAccumulator(bias_out, needs_grad[7]),
        )
        self.grad_weight_gate, self.grad_bias_gate = (
            MatmulGradAccumulator(gate, needs_grad[8]),
            GradAccumulator(bias_gate, needs_grad[9]),
        )

    def _tiles(self, z: Tensor, channels: int) -> Iterator[tuple[slice, slice]]:
        """Rows of z, and their columns of ab and p."""
        n = z.shape[1]
        for tile in tile_slices(len(z), n * channels * z.itemsize, z.device):
            yield tile, slice(tile.start * n, tile.stop * n)

    def project(self, z: Tensor, mask: Tensor | None, ab: Tensor) -> None:
        """Write a and b to ``ab``; mask [r·n]."""
        for tile, columns in self._tiles(z, len(self.weight_in)):
            joint = self.weight_in @ self.norm_in.forward(z[tile])[0].t()
            keep = None if mask is None else mask[columns]
            self.pointwise.glu_columns(joint, self.bias_in, keep, ab[:, columns])

    def output(self, z: Tensor, p: Tensor, out: Tensor) -> None:
        """Write the update of z to ``out`` [r, n, c]."""
        for tile, columns in self._tiles(z, max(self.c, self.hidden)):
            value = self.norm_out.forward_columns(p[:, columns])[0] @ self.weight_out.t()
            logits = self.norm_in.forward(z[tile])[0] @ self.weight_gate.t()
            self.pointwise.gate(value, self.bias_out, logits, self.bias_gate, out[tile].view(-1, self.c))

    def output_backward(self, grad: Tensor, z: Tensor, p: Tensor, grad_p: Tensor, out: Tensor) -> None:
        """Write the gradient of p to ``grad_p``, and the gate's part of the gradient of LN(z) to ``out`` [r, n, c]."""
        for tile, columns in self._tiles(z, max(self.c, self.hidden)):
            y = self.norm_in.forward(z[tile])[0]
            mixed, moments = self.norm_out.forward_columns(p[:, columns])
            value, logits = mixed @ self.weight_out.t(), y @ self.weight_gate.t()
            self.pointwise.gate_backward(
                grad[tile].reshape(-1, self.c), value, self.bias_out, logits, self.bias_gate,
                self.grad_bias_out.total, self.grad_bias_gate.total,
            )  # fmt: skip
            self.grad_weight_out.add(value.t(), mixed)
            self.grad_weight_gate.add(logits.t(), y)
            self.norm_out.backward_columns(value @ self.weight_out, p[:, columns], moments, grad_p[:, columns])
            torch.mm(logits, self.weight_gate, out=out[tile].view(-1, self.c))

    def project_backward(self, grad_ab: Tensor, z: Tensor, mask: Tensor | None, out: Tensor) -> None:
        """Replace ``out``, as ``output_backward`` left it, by the gradient of z."""
        for tile, columns in self._tiles(z, len(self.weight_in)):
            y, moments = self.norm_in.forward(z[tile])
            joint = self.weight_in @ y.t()
            keep = None if mask is None else mask[columns]
            self.pointwise.glu_columns_backward(grad_ab[:, columns], joint, self.bias_in, keep, self.grad_bias_in.total)
            self.grad_weight_in.add(joint, y)
            inner = out[tile].view(-1, self.c)
            self.norm_in.backward(inner.addmm_(joint.t(), self.weight_in), z[tile], moments, out[tile])

    @staticmethod
    def contract(a: Tensor, b: Tensor, direction: str, out: Tensor) -> None:
        """Write ``Σ_k a_ik b_jk``, incoming ``Σ_k a_ki b_kj``, to ``out``; a, b and out are [c', n, n]."""
        if direction == "outgoing":
            torch.bmm(a, b.transpose(1, 2), out=out)
        else:
            torch.bmm(a.transpose(1, 2), b, out=out)

    @staticmethod
    def contract_backward(grad: Tensor, a: Tensor, b: Tensor, direction: str, grads: tuple[Tensor, Tensor]) -> None:
        """Write the gradients of a and b to ``grads``, which may be a and b, a few channels at a time; grad: of p."""
        for part in tile_slices(len(a), 2 * a[0].nbytes, a.device):
            g, left, right = grad[part], a[part], b[part]
            if direction == "outgoing":
                made = torch.bmm(g, right), torch.bmm(g.transpose(1, 2), left)
            else:
                made = torch.bmm(right, g.transpose(1, 2)), torch.bmm(left, g)
            grads[0][part] = made[0]
            grads[1][part] = made[1]

    def grads(self) -> list[Tensor | None]:
        """The gradients of the parameters."""
        return [
            *self.norm_in.grads(), self.grad_weight_in.result(), self.grad_bias_in.result(),
            *self.norm_out.grads(), self.grad_weight_out.result(), self.grad_bias_out.result(),
            self.grad_weight_gate.result(), self.grad_bias_gate.result(),
        ]  # fmt: skip


class NativeUpdate:
    """The same parts, each one call of C++ for all rows (``native.py``)."""

    def __init__(
        self, parameters: Sequence[Tensor | None], eps: float, needs_grad: Sequence[bool] = (False,) * 10
    ) -> None:
        self.parameters, self.eps = dict(zip(native.PARAMETERS, parameters, strict=True)), eps
        weight = self.parameters["weight_in"]
        assert weight is not None
        self.hidden, self.c = weight.shape[0] // 4, weight.shape[1]
        self.sums = {
            name: GradAccumulator(x, needed)
            for (name, x), needed in zip(self.parameters.items(), needs_grad, strict=True)
        }

    def project(self, z: Tensor, mask: Tensor | None, ab: Tensor) -> None:
        native.run("project", self.parameters, self.eps, z, {"ab": ab}, mask)

    def output(self, z: Tensor, p: Tensor, out: Tensor) -> None:
        native.run("output", self.parameters, self.eps, z, {"p": p, "out": out})

    def output_backward(self, grad: Tensor, z: Tensor, p: Tensor, grad_p: Tensor, out: Tensor) -> None:
        tensors = {"grad": grad, "p": p, "grad_p": grad_p, "out": out}
        sums = {name: s.total for name, s in self.sums.items() if not name.endswith(("_in", "_in_bias"))}
        native.run("output_backward", self.parameters, self.eps, z, tensors, sums=sums)

    def project_backward(self, grad_ab: Tensor, z: Tensor, mask: Tensor | None, out: Tensor) -> None:
        sums = {name: s.total for name, s in self.sums.items() if name.endswith(("_in", "_in_bias"))}
        native.run("project_backward", self.parameters, self.eps, z, {"ab": grad_ab, "out": out}, mask, sums)

    @staticmethod
    def contract(a: Tensor, b: Tensor, direction: str, out: Tensor) -> None:
        native.contract(a, b, direction, out)

    @staticmethod
    def contract_backward(grad: Tensor, a: Tensor, b: Tensor, direction: str, grads: tuple[Tensor, Tensor]) -> None:
        native.contract(a, b, direction, grad, grads)

    def grads(self) -> list[Tensor | None]:
        return [s.result() for s in self.sums.values()]


def make_update(
    parameters: Sequence[Tensor | None], eps: float, implementation: str, needs_grad: Sequence[bool] = (False,) * 10
) -> TiledUpdate | NativeUpdate:
    """The parts of the update by an implementation of ``pointwise.BACKENDS``; see ``TiledUpdate`` for the arguments."""
    if native.serves(implementation):
        return NativeUpdate(parameters, eps, needs_grad)
    return TiledUpdate(parameters, eps, implementation, needs_grad)


def forward(
    z: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    weight_gate: Tensor,
    bias_gate: Tensor | None,
    mask: Tensor | None,
    direction: str,
    eps: float,
    implementation: str,
    saves_projections: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The update, and p [b, c', n, n]. ``weight_in`` [4c', c]: rows of a, b, the gate of a, the gate of b."""
    parameters = (
        norm_in_weight, norm_in_bias, weight_in, bias_in, norm_out_weight, norm_out_bias, weight_out, bias_out,
        weight_gate, bias_gate,
    )  # fmt: skip
    update = make_update(parameters, eps, implementation)
    b, n, hidden = len(z), z.shape[1], update.hidden
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    product = empty_channels(z, b, hidden)
    projections = empty_channels(z, 2 * b if saves_projections else 2, hidden)
    pairs = projections.unflatten(0, (-1, 2)).expand(b, -1, -1, -1, -1)
    rows = [None] * b if mask is None else mask.flatten(1)
    for x, keep, p, o, ab in zip(z, rows, product, out, pairs, strict=True):
        update.project(x, keep, ab.view(2 * hidden, n * n))
        update.contract(ab[0], ab[1], direction, p)
        update.output(x, p.view(hidden, n * n), o)
    return out, product, projections if saves_projections else z.new_empty(0)


def backward(
    grad: Tensor,
    z: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor | None,
    weight_in: Tensor,
    bias_in: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    weight_gate: Tensor,
    bias_gate: Tensor | None,
    mask: Tensor | None,
    product: Tensor,
    projections: Tensor,
    direction: str,
    eps: float,
    implementation: str,
    saves_projections: bool,
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    parameters = (
        norm_in_weight, norm_in_bias, weight_in, bias_in, norm_out_weight, norm_out_bias, weight_out, bias_out,
        weight_gate, bias_gate,
    )  # fmt: skip
    update = make_update(parameters, eps, implementation, needs_grad[1:11])
    b, n, hidden = len(z), z.shape[1], update.hidden
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    grads, grad_product = empty_channels(z, 2, hidden), empty_channels(z, 1, hidden)[0]
    columns, grad_columns = grads.view(2 * hidden, n * n), grad_product.view(hidden, n * n)
    pairs = projections.unflatten(0, (b, 2)) if saves_projections else [grads] * b
    rows = [None] * b if mask is None else mask.flatten(1)
    for x, g, keep, p, o, ab in zip(z, grad, rows, product, out, pairs, strict=True):
        update.output_backward(g, x, p.view(hidden, n * n), grad_columns, o)
        if not saves_projections:
            update.project(x, keep, columns)
        update.contract_backward(grad_product, ab[0], ab[1], direction, (grads[0], grads[1]))
        update.project_backward(columns, x, keep, o)
    return fill_missing_grads(z, [out, *update.grads(), None])


def fake_impl(z: Tensor, norm_in: Tensor, norm_in_bias: Tensor | None, weight_in: Tensor, *rest: object) -> tuple[
    Tensor, ...
]:  # fmt: skip
    b, hidden = len(z), weight_in.shape[0] // 4
    projections = empty_channels(z, 2 * b, hidden) if rest[-1] else z.new_empty(0)
    return torch.empty(z.shape, dtype=z.dtype, device=z.device), empty_channels(z, b, hidden), projections


CUSTOM_OP = define_custom_op("triangle_multiplication", forward, backward, fake_impl)
