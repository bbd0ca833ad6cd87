"""Outer product mean: the kernel contract, its definition, its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci import kernels
from ds4sci.kernels import KERNELS, outer_product_mean
from ds4sci.kernels.spec import Case
from tests.support.kernel_contract import BroadcastMaskContract
from tests.support.kernel_runs import CPU, cpu_names, normal, peak_in_outputs, run

KERNEL = KERNELS["outer_product_mean"]
OUTER_FIRST = ("AF2 width, more rows", "many rows", "odd channels", "fewer residues in a than in b")


class TestContract(BroadcastMaskContract):
    kernel = kernels.KERNELS["outer_product_mean"]
    small_case = "fewer residues in a than in b"

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        shapes = ((0, 3, 4), (1, 0, 4), (1, 3, 0), (1, 0, 0))
        parameters = {"weight": torch.ones(3, 64), "bias": torch.ones(3)}
        same = [
            {"a": torch.randn(*shape, 8), "b": torch.randn(*shape, 8), "mask": torch.ones(shape)} | parameters
            for shape in shapes
        ]
        two_masks = [
            {"a": torch.randn(1, s, n_a, 8), "b": torch.randn(1, s, n_b, 8), "mask": torch.ones(1, s, n_a)}
            | {"mask_b": torch.ones(1, s, n_b)}
            | parameters
            for n_a, n_b in ((0, 4), (4, 0), (0, 0))
            for s in (9, 2)
        ]
        return same + two_masks


@pytest.mark.parametrize("rows", [1, 9])
def test_equals_its_definition_for_few_and_many_rows(rows: int) -> None:
    """Below c / 2 rows the weight is applied first."""
    b, n, c, c_z = 2, 5, 4, 3
    a, other = normal(b, rows, n, c), normal(b, rows, n, c, seed=1)
    weight, bias = normal(c_z, c * c), normal(c_z)
    mask = torch.rand(b, rows, n, generator=torch.Generator().manual_seed(0)) > 0.2
    want = torch.zeros(b, n, n, c_z, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            both = (mask[:, :, i] & mask[:, :, j]).double()
            outer = torch.einsum("bs,bsc,bsd->bcd", both, a[:, :, i], other[:, :, j])
            want[:, i, j] = (outer.flatten(1) @ weight.T + bias) / (1e-3 + both.sum(1, keepdim=True))
    torch.testing.assert_close(outer_product_mean(a, other, mask, weight, bias), want)
    rows_of_z = outer_product_mean(a[:, :, 1:3], other, mask[:, :, 1:3], weight, bias, mask_b=mask)
    torch.testing.assert_close(rows_of_z, want[:, 1:3])


@pytest.mark.parametrize("name", [name for name in cpu_names(KERNEL) if name == "native"])
@pytest.mark.parametrize(
    "case", [case for case in KERNEL.cases if case.name in OUTER_FIRST], ids=lambda case: case.name
)
def test_results_do_not_depend_on_the_number_of_threads(name: str, case: Case) -> None:
    inputs = case.make(torch.Generator().manual_seed(0), torch.float32, CPU)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(KERNEL, KERNEL.get_implementation(name).run, inputs))
    finally:
        torch.set_num_threads(before)
    for key, x in results[0].items():
        assert torch.equal(x, results[1][key]), key
        assert torch.equal(x, results[2][key]), key


@pytest.mark.parametrize("rows", [8, 9])
def test_the_outer_product_is_never_materialized(rows: int) -> None:
    """[n, n, c·c] would take 16 outputs."""
    a = torch.randn(1, rows, 384, 16, requires_grad=True)
    mask, weight = torch.ones(1, rows, 384, dtype=torch.bool), torch.randn(16, 256)
    assert peak_in_outputs(lambda: KERNELS["outer_product_mean"](a, a, mask, weight, None)) < 4.0
