"""Inputs, runs and errors of kernels, for the contract tests: every implementation against fp64 and plain torch."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ds4sci import kernels
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.kernels.spec import Case, Implementation, Kernel, SizeSweep

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
GPU_ONLY = ("triton", "flash", "flex")
"""Implementations whose inputs are made on a GPU where there is one."""
CONSTANT = {"outer_product_mean": ("mask", "mask_b"), "triangle_multiplication": ("mask",)}
"""Floating-point inputs without a gradient, by kernel."""
SAME_BITS = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("native",)}
"""Implementations whose results do not depend on the number of threads. Not sdpa: the last bit of torch's backward
differs on 257 tokens."""
SAVES_OUTPUT = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("flash", "native")}
"""Implementations that save their output for backward: modifying it in place is an error, as in torch's SDPA."""
UNCHECKED_DIMENSIONS = {("pair_bias", "weight", 0), ("varlen_attention", "doc_spans", 0)}
"""Dimensions that no other input determines: the number of heads, of documents."""
FEW_ELEMENTS = 100
"""Results with fewer elements are compared over four draws of the inputs: one draw says little about the errors."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that depend on the shape and the seed."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_inputs(case: Case, dtype: torch.dtype, implementation: Implementation, seed: int = 0) -> dict[str, Any]:
    """Inputs of ``case`` on the device of ``implementation``."""
    on_gpu = implementation.name in GPU_ONLY and torch.cuda.is_available()
    return case.make(torch.Generator().manual_seed(seed), dtype, torch.device("cuda" if on_gpu else "cpu"))


def named_tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by name; those within tuples as ``weights.3.0``."""
    found: dict[str, Tensor] = {}

    def visit(name: str, x: Any) -> None:
        if isinstance(x, Tensor):
            found[name] = x
        elif isinstance(x, tuple):
            for i, part in enumerate(x):
                visit(f"{name}.{i}", part)

    for name, x in inputs.items():
        visit(name, x)
    return found


def floats(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors of ``named_tensors``."""
    return {name: x for name, x in named_tensors(inputs).items() if x.is_floating_point()}


def differentiable(kernel: Kernel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of ``floats`` that have a gradient."""
    return {name: x for name, x in floats(inputs).items() if name not in CONSTANT.get(kernel.name, ())}


def replaced(inputs: dict[str, Any], by: dict[str, Tensor]) -> dict[str, Any]:
    """``inputs`` with other tensors under these names."""

    def visit(name: str, x: Any) -> Any:
        if isinstance(x, tuple):
            parts = [visit(f"{name}.{i}", part) for i, part in enumerate(x)]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return by.get(name, x)

    return {name: visit(name, x) for name, x in inputs.items()}


def to_fp64(inputs: dict[str, Any]) -> dict[str, Any]:
    return replaced(inputs, {name: x.double() for name, x in floats(inputs).items()})


def run(
    kernel: Kernel, function: Any, inputs: dict[str, Any], needs_grad: set[str] | None = None
) -> dict[str, torch.Tensor]:
    """Output and gradients of a weighted sum of the output, as fp64. ``needs_grad``: names; all by default."""
    leaves = {
        name: x.detach().requires_grad_(needs_grad is None or name in needs_grad)
        for name, x in differentiable(kernel, inputs).items()
    }
    out = function(**replaced(inputs, leaves))
    if not out.requires_grad:
        return {"out": out.detach().double()}
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    variables = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(variables.values()), weight)
    return {"out": out.detach().double()} | {
        f"grad {name}": grad.double() for name, grad in zip(variables, grads, strict=True)
    }


@contextlib.contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Within the block, uninitialized memory holds NaN, so that elements that are not written are detected."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@functools.cache
def _refusals(kernel_name: str, case_name: str) -> dict[str, str | None]:
    kernel = kernels.KERNELS[kernel_name]
    case = next(one for one in kernel.cases if one.name == case_name)
    return {one.name: one.why_not(**make_inputs(case, torch.float32, one)) for one in kernel.implementations}


def runnable(kernel: Kernel, cases: tuple[Case, ...] | None = None) -> list[tuple[Implementation, Case]]:
    """Every implementation of ``kernel`` with every case that it can run on this machine."""
    return [
        (one, case)
        for one in kernel.implementations
        for case in (kernel.cases if cases is None else cases)
        if _refusals(kernel.name, case.name)[one.name] is None
    ]


def runnable_names(kernel: Kernel, names: tuple[str, ...] | None = None) -> list[str]:
    """Names of the implementations that can run the kernel's first case on this machine; only those in ``names``."""
    found = [one.name for one, _ in runnable(kernel, kernel.cases[:1])]
    return [name for name in found if names is None or name in names]


def is_interpreted(implementation: Implementation) -> bool:
    """Whether it runs in Triton's interpreter."""
    return implementation.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


def cpu_names(kernel: Kernel) -> list[str]:
    """Runnable implementations that compute on the CPU."""
    return [name for name in runnable_names(kernel) if name not in GPU_ONLY]


def errors_over_draws(
    kernel: Kernel, implementation: Implementation, case: Case, dtype: torch.dtype, name: str
) -> tuple[Tensor, Tensor]:
    """Errors of the implementation and of plain torch: root mean squares over four draws of the inputs."""
    errors = []
    for seed in range(4):
        inputs = make_inputs(case, dtype, implementation, seed)
        expected = run(kernel, kernel.reference, to_fp64(inputs))[name]
        errors += [(run(kernel, x, inputs)[name] - expected).norm() for x in (implementation.run, kernel.reference)]
    ours, plain = (torch.stack(errors[i::2]).square().mean().sqrt() for i in range(2))
    return ours, plain


class RelativeErrors(NamedTuple):
    """Errors of an implementation divided by those of plain torch, on ``samples`` elements.

    typical  root mean square, then the geometric mean over draws, since a few large elements would dominate one draw
    largest  largest element
    """

    typical: float
    largest: float
    samples: int


GROWTH_SAMPLES = 256
"""Elements on which a ratio of errors is measured, over as many draws as that takes, up to GROWTH_DRAWS."""
GROWTH_DRAWS = {False: 16, True: 4}
"""Draws for up to 10,000 terms, and for more."""


def relative_errors(kernel: Kernel, sweep: SizeSweep, size: int, dtype: torch.dtype) -> dict[str, RelativeErrors]:
    """Errors by implementation and result. Plain torch's error counts at least as the rounding of the result."""
    case, draws, draw = sweep.case(size), 1, 0
    eps = torch.finfo(dtype).eps
    ratios: dict[str, list[tuple[float, float, int]]] = {}
    while draw < draws:
        inputs = make_inputs(case, dtype, kernel.implementations[-1], draw)
        expected, plain = run(kernel, kernel.reference, to_fp64(inputs)), run(kernel, kernel.reference, inputs)
        draws = min(GROWTH_DRAWS[size > 10_000], math.ceil(GROWTH_SAMPLES / min(x.numel() for x in expected.values())))
        for one in kernel.implementations:
            if one.run is kernel.reference or one.why_not(**inputs):
                continue
            for name, x in run(kernel, one.run, inputs).items():
                ours, theirs, rounding = x - expected[name], plain[name] - expected[name], eps * expected[name]
                typical = ours.norm() / max(theirs.norm(), 0.3 * rounding.norm())
                largest = ours.abs().max() / max(theirs.abs().max(), rounding.abs().max())
                ratios.setdefault(f"{one.name}: {name}", []).append((float(typical), float(largest), x.numel()))
        draw += 1
    return {
        key: RelativeErrors(
            math.exp(statistics.fmean(math.log(max(typical, 1e-9)) for typical, _, _ in found)),
            statistics.median(largest for _, largest, _ in found),
            sum(samples for _, _, samples in found),
        )
        for key, found in ratios.items()
    }


def assert_no_growth(kernel: Kernel, sweep: SizeSweep, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Errors are at most 3 times plain torch's at every size, and 1.3 times the ratio at the smallest size.

    A ratio below 1 counts as 1: an implementation need not be better than plain torch. The uncertainty of a ratio
    falls with the square root of the number of elements it is measured on.
    """
    found = {size: relative_errors(kernel, sweep, size, dtype) for size in sizes}
    assert found[sizes[0]], "no implementation except the reference runs here"
    for size, by_result in found.items():
        for key, ratio in by_result.items():
            smallest = found[sizes[0]][key]
            assert ratio.typical <= 3, f"{key} at {size}: {ratio}"
            assert ratio.largest <= 6, f"{key} at {size}: {ratio}"  # one element among thousands is noisier
            uncertainty = 1 + 2 / math.sqrt(min(ratio.samples, smallest.samples))
            limit = 1.3 * max(smallest.typical, 1.0) * uncertainty
            assert ratio.typical <= limit, f"{key} at {size}: {ratio} after {smallest}"


def peak_in_outputs(call: Callable[[], torch.Tensor]) -> float:
    """Peak memory of forward and backward over the inputs, as a multiple of the output."""
    out = call()
    weight = torch.ones_like(out)
    out.backward(weight)
    return least_peak_bytes(lambda: call().backward(weight)) / weight.nbytes


def least_peak_bytes(action: Callable[[], object]) -> float:
    """Peak memory of a call: the least of four, since pages that the allocator keeps only add to it."""
    peaks = [peak_memory_mb(action, torch.device("cpu")) for _ in range(4)]
    known = [peak for peak in peaks if peak is not None]
    if not known:
        pytest.skip("the system does not report the peak memory of a process")
    return 1e6 * min(known)
