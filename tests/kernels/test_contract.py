"""What every implementation of every kernel keeps, case by case: numbers and gradients as right as plain torch's in the
same dtype (measured against fp64), inputs untouched, the same bits again, only the gradients that were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import Case, Implementation, Kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL = [
    pytest.param(kernel, implementation, case, id=f"{kernel.name}-{implementation.name}-{case.name}")
    for kernel in KERNELS.values()
    for implementation in kernel.implementations
    for case in kernel.cases
]


def inputs(case: Case, dtype: torch.dtype, implementation: Implementation, seed: int = 0) -> dict[str, Any]:
    """On the device that the implementation is for: a GPU for those of GPUs alone, where there is one."""
    on_gpu = implementation.name in ("triton", "flash", "flex") and torch.cuda.is_available()
    return case.make(torch.Generator().manual_seed(seed), dtype, torch.device("cuda" if on_gpu else "cpu"))


def floats(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Floating tensors by name, those in tuples as ``weights.3.0``; a mask that multiplies has no gradient."""
    found: dict[str, torch.Tensor] = {}

    def visit(name: str, x: Any) -> None:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            found[name] = x
        elif isinstance(x, tuple):
            for i, part in enumerate(x):
                visit(f"{name}.{i}", part)

    for name, x in given.items():
        visit(name, x)
    return found


def replaced(given: dict[str, Any], by: dict[str, torch.Tensor]) -> dict[str, Any]:
    """``given`` with other tensors at these names."""

    def visit(name: str, x: Any) -> Any:
        if isinstance(x, tuple):
            parts = [visit(f"{name}.{i}", part) for i, part in enumerate(x)]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return by.get(name, x)

    return {name: visit(name, x) for name, x in given.items()}


CONSTANT = {"outer_product_mean": ("mask",), "triangle_multiplication": ("mask",)}
"""Floating inputs that get no gradient."""


def run(
    kernel: Kernel, function: Any, given: dict[str, Any], wanted: set[str] | None = None
) -> dict[str, torch.Tensor]:
    """Output and gradients of a weighted sum of it, as fp64."""
    variable = {name: x for name, x in floats(given).items() if name not in CONSTANT.get(kernel.name, ())}
    leaves = {name: x.detach().requires_grad_(wanted is None or name in wanted) for name, x in variable.items()}
    out = function(**replaced(given, leaves))
    if not out.requires_grad:
        return {"out": out.detach().double()}
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    asked = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(asked.values()), weight)
    return {"out": out.detach().double()} | {
        f"grad {name}": grad.double() for name, grad in zip(asked, grads, strict=True)
    }


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialized memory holds NaN: what is not written is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def widened(given: dict[str, Any]) -> dict[str, Any]:
    return replaced(given, {name: x.double() for name, x in floats(given).items()})


FEW = 100
"""Elements below which one draw of the inputs says little of plain torch's error and of ours: four draws are taken."""


def over_draws(
    kernel: Kernel, implementation: Implementation, case: Case, dtype: torch.dtype, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """An implementation's error and plain torch's, root mean squares over draws."""
    errors = []
    for seed in range(4):
        given = inputs(case, dtype, implementation, seed)
        want = run(kernel, kernel.reference, widened(given))[name]
        errors += [(run(kernel, x, given)[name] - want).norm() for x in (implementation.run, kernel.reference)]
    ours, plain = (torch.stack(errors[i::2]).square().mean().sqrt() for i in range(2))
    return ours, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize(("kernel", "implementation", "case"), ALL)
def test_as_right_as_plain_torch(
    kernel: Kernel, implementation: Implementation, case: Case, dtype: torch.dtype
) -> None:
    given = inputs(case, dtype, implementation)
    reason = implementation.why_not(**given)
    if reason:
        pytest.skip(reason)
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)} | floats(given)
    untouched = {name: x.clone() for name, x in tensors.items()}
    oracle, plain = run(kernel, kernel.reference, widened(given)), run(kernel, kernel.reference, given)
    with poisoned():
        got = run(kernel, implementation.run, given)
    again = run(kernel, implementation.run, given)
    assert got.keys() == oracle.keys()
    scale = max(want.norm() for want in oracle.values())
    for name, want in oracle.items():
        assert got[name].isfinite().all(), name
        assert torch.equal(got[name], again[name]), f"{name} differs from run to run"
        # plain torch's error, or what rounding the result alone costs: eps / sqrt(12) of the largest in each binade
        # (a gradient that is 0 for all inputs, as over a single key, has only the others to be measured by)
        honest = max((plain[name] - want).norm(), 0.3 * torch.finfo(dtype).eps * (want.norm() or scale))
        furthest = max((plain[name] - want).abs().max(), torch.finfo(dtype).eps * (want.abs().max() or scale))
        error = (got[name] - want).norm()
        if error > 3 * honest and want.numel() < FEW:
            error, plain_error = over_draws(kernel, implementation, case, dtype, name)
            honest = max(honest, plain_error)
            furthest = max(furthest, honest)
        assert error <= 3 * honest, f"{name}: error {error:.3g}, plain torch's {honest:.3g}, size {want.norm():.3g}"
        assert (got[name] - want).abs().max() <= 6 * furthest, name  # one element among thousands: noisier
    for name, x in untouched.items():
        assert torch.equal(tensors[name], x), f"{name} was changed"


@pytest.mark.parametrize(("kernel", "implementation", "case"), ALL)
def test_gradients_asked_for_alone_are_those_of_all(kernel: Kernel, implementation: Implementation, case: Case) -> None:
    given = inputs(case, torch.float32, implementation)
    reason = implementation.why_not(**given)
    if reason:
        pytest.skip(reason)
    everything = run(kernel, implementation.run, given)
    for name in everything.keys() - {"out"}:
        name = name.removeprefix("grad ")
        alone = run(kernel, implementation.run, given, {name})
        assert alone.keys() == {"out", f"grad {name}"}
        torch.testing.assert_close(alone[f"grad {name}"], everything[f"grad {name}"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(kernel, implementation.run, given, set())["out"], everything["out"])


SAME_BITS = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("native",)}
"""Implementations whose results are the same bits on any number of threads. Not sdpa: torch's backward differs in
the last one on 257 tokens."""


@pytest.mark.parametrize(("kernel", "implementation", "case"), ALL)
def test_the_number_of_threads_changes_no_bit(kernel: Kernel, implementation: Implementation, case: Case) -> None:
    if implementation.name not in SAME_BITS.get(kernel.name, ()):
        pytest.skip("torch's own products make no such promise")
    given = inputs(case, torch.float32, implementation)
    reason = implementation.why_not(**given)
    if reason:
        pytest.skip(reason)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(kernel, implementation.run, given))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(x, other[name]), name
