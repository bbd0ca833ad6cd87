"""Results of every operation own their memory: what calls them may multiply a dropout mask into them in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels import KERNELS
from ds4sci.kernels.evoformer_attention import LSE_KERNEL
from ds4sci.kernels.spec import Case, Implementation, Kernel
from tests.kernels.test_contract import CONSTANT, floats, inputs, replaced

SAVED = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("flash", "native")}
"""Implementations that keep their result for backward, as torch's own attention does: to modify it is an error."""
ALL = [
    pytest.param(kernel, implementation, case, id=f"{kernel.name}-{implementation.name}-{case.name}")
    for kernel in KERNELS.values()
    for implementation in kernel.implementations
    for case in kernel.cases[:2]
]


def prepared(
    kernel: Kernel, implementation: Implementation, case: Case
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments, and those of them that want gradients."""
    given = inputs(case, torch.float32, implementation)
    reason = implementation.why_not(**given)
    if reason:
        pytest.skip(reason)
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in floats(given).items()
        if name not in CONSTANT.get(kernel.name, ())
    }
    return replaced(given, leaves), leaves


@pytest.mark.parametrize(("kernel", "implementation", "case"), ALL)
def test_a_result_owns_its_memory(kernel: Kernel, implementation: Implementation, case: Case) -> None:
    given, leaves = prepared(kernel, implementation, case)
    results = [implementation.run(**given)]
    if kernel.name == "evoformer_attention":
        given.pop("gate", None)
        results += LSE_KERNEL.get_implementation(implementation.name).run(**given)
    for out in results:
        if implementation.name != "reference":  # whose views are torch's own, which autograd follows
            assert out._base is None
        storage = out.untyped_storage().data_ptr()
        assert all(x.untyped_storage().data_ptr() != storage for x in leaves.values())


@pytest.mark.parametrize(("kernel", "implementation", "case"), ALL)
def test_a_result_modified_in_place_has_the_right_gradient(
    kernel: Kernel, implementation: Implementation, case: Case
) -> None:
    given, leaves = prepared(kernel, implementation, case)
    generator = torch.Generator().manual_seed(2)

    def gradients(function: Any, in_place: bool) -> tuple[torch.Tensor, ...]:
        out = function(**given)
        generator.manual_seed(2)
        mask, other, weight = (torch.rand(out.shape, generator=generator).to(out) for _ in range(3))
        if in_place:
            out *= mask
            out += other
            out.sub_(0.5 * other)
        else:
            out = out * mask + other - 0.5 * other
        return torch.autograd.grad((out * weight).sum(), list(leaves.values()))

    if implementation.name in SAVED.get(kernel.name, ()):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(implementation.run, True)
        return
    got, want = gradients(implementation.run, True), gradients(implementation.run, False)
    plain = gradients(kernel.reference, False)
    for name, one, other, reference in zip(leaves, got, want, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, msg=name)
        scale = max(float(reference.abs().max()), 1e-3)
        torch.testing.assert_close(one, reference, rtol=1e-3, atol=1e-4 * scale, msg=name)
