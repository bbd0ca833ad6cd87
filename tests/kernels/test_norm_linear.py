"""Linear layers on rows with an optional layer norm: both classes against fp64, for all layouts of rows."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels import norm_linear
from ds4sci.kernels.norm_linear import NativeNormLinear, TiledNormLinear
from tests.support.kernel_runs import normal

EPS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Layout(NamedTuple):
    """Sizes of a layer, the layout of its rows, and the parameters it has."""

    outer: int
    inner: int
    inputs: int
    outputs: int
    transposed: bool = False
    channels_first: bool = False
    norm: bool = True
    norm_bias: bool = True
    bias: bool = True


LAYOUTS = {
    "attention": Layout(5, 37, 64, 256),
    "odd sizes, transposed": Layout(7, 19, 37, 51, transposed=True),
    "no norm": Layout(3, 33, 45, 130, norm=False),
    "one row, one channel": Layout(1, 1, 1, 1),
    "several sums of the weight": Layout(9, 300, 24, 20, bias=False),
    "narrow, channels first": Layout(11, 29, 70, 3, channels_first=True, bias=False),
    "wide, channels first": Layout(2, 50, 33, 117, channels_first=True, norm_bias=False),
    "channels first, no norm": Layout(3, 17, 20, 8, channels_first=True, norm=False),
}


def layer(layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    c, n = layout.inputs, layout.outputs
    weight = (normal(n, c, seed=3) * c**-0.5).to(dtype)
    norm_weight = (1 + 0.2 * normal(c, seed=1)).to(dtype) if layout.norm else None
    norm_bias = normal(c, seed=2).to(dtype) if layout.norm and layout.norm_bias else None
    return norm_weight, norm_bias, weight, normal(n, seed=4).to(dtype) if layout.bias else None


def rows(layout: Layout, channels: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[outer, inner, channels], transposed in memory or not."""
    if layout.transposed:
        return normal(layout.inner, layout.outer, channels, seed=seed).to(dtype).transpose(0, 1)
    return normal(layout.outer, layout.inner, channels, seed=seed).to(dtype)


def expected(x: Tensor, grad: Tensor, parameters: tuple[Tensor | None, ...], eps: float) -> list[Tensor | None]:
    """Result and gradients of x and the parameters, in fp64."""
    leaves = [None if p is None else p.double().requires_grad_() for p in (x, *parameters)]
    x64, norm_weight, norm_bias, weight, bias = leaves
    assert x64 is not None
    assert weight is not None
    y = x64 if norm_weight is None else F.layer_norm(x64, x64.shape[-1:], norm_weight, norm_bias, eps)
    out = F.linear(y, weight, bias)
    present = [leaf for leaf in leaves if leaf is not None]
    grads = iter(torch.autograd.grad(out, present, grad.double()))
    return [out.detach(), *(None if leaf is None else next(grads) for leaf in leaves)]


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.isfinite().all()
    error, size = (got.double() - want).norm(), want.norm()
    assert error <= EPS[dtype] * max(float(size), 0.3 * want.numel() ** 0.5), f"{error / size:.3g}"


def native_or_skip() -> None:
    if not norm_linear.serves("native"):
        pytest.skip("the C++ does not serve this instruction set, or there is no compiler")


def run_native(layout: Layout, x: Tensor, grad: Tensor, parameters: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The same as ``expected``, in two tiles of different size, into memory filled with NaN."""
    norm_weight, norm_bias, weight, bias = parameters
    assert weight is not None
    one = NativeNormLinear(norm_weight, norm_bias, weight, bias, 1e-5, [True] * 4, layout.channels_first)
    nan = functools.partial(torch.full_like, fill_value=torch.nan, dtype=weight.dtype)
    out, grad_x = nan(grad), nan(x)
    middle = layout.outer // 3
    for tile in (slice(0, middle), slice(middle, None)):
        if layout.channels_first:
            result = nan(out[tile].flatten(0, 1).t(), memory_format=torch.contiguous_format)
            one.forward(x[tile], result)
            out[tile] = result.t().view(out[tile].shape)
            one.backward(grad[tile].flatten(0, 1).t().contiguous(), x[tile], grad_x[tile])
        else:
            one.forward(x[tile], out[tile])
            one.backward(grad[tile], x[tile], grad_x[tile])
    return [out, grad_x, *one.grads()]


@pytest.mark.parametrize("dtype", EPS, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_native_layer_equals_torch(name: str, dtype: torch.dtype) -> None:
    native_or_skip()
    layout = LAYOUTS[name]
    parameters = layer(layout, dtype)
    grad = rows(layout, layout.outputs, dtype, 6)
    for x_dtype in {dtype, torch.float32}:  # the gated output of attention is fp32
        x = rows(layout, layout.inputs, x_dtype, 5)
        want = expected(x, grad, parameters, 1e-5)
        for got, one in zip(run_native(layout, x, grad, parameters), want, strict=True):
            assert (got is None) == (one is None)
            if got is not None and one is not None:
                assert_near(got, one, dtype)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not LAYOUTS[name].channels_first])
def test_the_tiled_layer_equals_torch(name: str) -> None:
    layout = LAYOUTS[name]
    parameters, dtype = layer(layout, torch.float32), torch.float32
    x, grad = rows(layout, layout.inputs, dtype, 5), rows(layout, layout.outputs, dtype, 6)
    one = TiledNormLinear("tiled", *parameters, 1e-5, [True] * 4)
    out, grad_x = torch.empty_like(grad), torch.empty_like(x)
    one.forward(x, out)
    one.backward(grad, x, grad_x)
    for got, want in zip([out, grad_x, *one.grads()], expected(x, grad, parameters, 1e-5), strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert_near(got, want, dtype)


@pytest.mark.parametrize("needs_grad", [*itertools.product([False, True], repeat=4)], ids=str)
def test_gradients_that_are_not_requested_are_not_computed(needs_grad: tuple[bool, ...]) -> None:
    native_or_skip()
    layout = LAYOUTS["attention"]
    parameters = layer(layout, torch.float32)
    x, grad = rows(layout, layout.inputs, torch.float32, 5), rows(layout, layout.outputs, torch.float32, 6)
    results = []
    for needed in (needs_grad, (True,) * 4):
        one = NativeNormLinear(*parameters, 1e-5, needed)
        grad_x = torch.empty_like(x)
        one.backward(grad, x, grad_x)
        results.append([grad_x, *one.grads()])
    for needed, some, every in zip((True, *needs_grad), *results, strict=True):
        assert (some is not None) == needed
        if some is not None and every is not None:
            assert torch.equal(some, every)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    native_or_skip()
    layout = LAYOUTS["several sums of the weight"]
    parameters = layer(layout, torch.float32)
    x, grad = rows(layout, layout.inputs, torch.float32, 5), rows(layout, layout.outputs, torch.float32, 6)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run_native(layout, x, grad, parameters))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert one is None or (other is not None and torch.equal(one, other))


def test_rows_that_fill_no_block_do_not_make_gradients_nan_without_eps() -> None:
    """Padding with zeros would: their layer norm divides by 0."""
    native_or_skip()
    parameters = layer(Layout(1, 5, 16, 8), torch.float32)
    x, grad = normal(1, 5, 16).float(), normal(1, 5, 8).float()
    one = NativeNormLinear(*parameters, 0.0, [True] * 4)
    grad_x = torch.empty_like(x)
    one.backward(grad, x, grad_x)
    for got, want in zip([grad_x, *one.grads()], expected(x, grad, parameters, 0.0)[1:], strict=True):
        assert got is not None
        assert want is not None
        assert_near(got, want, torch.float32)


def test_arguments_of_any_strides() -> None:
    """Broadcast gradients, a permuted x and an output that are not contiguous along the channels."""
    native_or_skip()
    parameters = layer(Layout(3, 5, 16, 8), torch.float32)
    x, grad = normal(16, 3, 5).float().permute(1, 2, 0), normal(1).float().expand(3, 5, 8)
    one = NativeNormLinear(*parameters, 1e-5, [True] * 4)
    grad_x = torch.empty_like(x)
    assert grad_x.stride(-1) != 1
    one.backward(grad, x, grad_x)
    for got, want in zip([grad_x, *one.grads()], expected(x, grad, parameters, 1e-5)[1:], strict=True):
        assert got is not None
        assert want is not None
        assert_near(got, want, torch.float32)
