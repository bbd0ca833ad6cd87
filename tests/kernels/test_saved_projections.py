"""Projections that operations keep for backward: the same gradients, within the bytes that are allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ds4sci.kernels import gated_self_attention, saved_projections, triangle_multiplication
from ds4sci.kernels.flop_formulas import FORMULAS
from ds4sci.kernels.gated_self_attention.cases import CASES as ATTENTION_CASES
from ds4sci.kernels.triangle_multiplication.cases import CASES as TRIANGLE_CASES

OPERATIONS = {"gated_self_attention": gated_self_attention, "triangle_multiplication": triangle_multiplication}
CASES = [
    *(("gated_self_attention", case) for case in ATTENTION_CASES),
    *(("triangle_multiplication", case) for case in TRIANGLE_CASES),
]


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [x for part in value for x in tensors_of(part)] if isinstance(value, tuple) else []


class Saved:
    """Bytes of the tensors that autograd saves in the block."""

    def __enter__(self) -> Saved:
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def pack(self, x: Tensor) -> Tensor:
        self.bytes += x.untyped_storage().nbytes()
        return x.detach()

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


def run(name: str, given: dict[str, Any], nbytes: float, **more: Any) -> tuple[list[Tensor], int, float]:
    """Output and, twice, the gradients; bytes that are saved; bytes of the allowance that are left."""
    inputs = [x.requires_grad_() for value in given.values() for x in tensors_of(value)]
    with saved_projections.allowance(nbytes), Saved() as saved:
        out = OPERATIONS[name](**given, **more)
        left = saved_projections._left
    found = [out]
    for keep in (True, False):
        grads = torch.autograd.grad(out, inputs, torch.sin(out.detach()), retain_graph=keep, allow_unused=True)
        found += [g for g in grads if g is not None]
    return found, saved.bytes, left


@pytest.mark.parametrize("implementation", ["native", "tiled"])
@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda x: getattr(x, "name", x))
def test_same_bits(name: str, case: Any, implementation: str) -> None:
    given = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    plain, least, _ = run(name, given, 0, implementation=implementation)
    found, most, left = run(name, given, 1e9, implementation=implementation)
    assert most - least == 1e9 - left > 0
    assert len(found) == len(plain) > 3
    for x, y in zip(found, plain, strict=True):
        assert torch.equal(x, y)
    assert run(name, given, 1e9 - left - 1, implementation=implementation)[1] == least, "one byte too few"


def test_first_operations_first_and_none_without_gradient() -> None:
    case = next(c for c in ATTENTION_CASES if c.name == "MSA row")
    given = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    nbytes = 5 * 33 * 4 * 64 * 4
    with saved_projections.allowance(1.5 * nbytes):
        with torch.no_grad():
            gated_self_attention(**given, implementation="tiled")
        assert saved_projections._left == 1.5 * nbytes
        given["x"].requires_grad_()
        sizes = []
        for _ in range(2):
            with Saved() as saved:
                gated_self_attention(**given, implementation="tiled")
            sizes.append(saved.bytes)
    assert sizes[0] - sizes[1] == nbytes
    assert saved_projections._left == 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_flops_leave_out_what_is_not_computed_again(name: str) -> None:
    cases = ATTENTION_CASES if name == "gated_self_attention" else TRIANGLE_CASES
    given = cases[0].make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    x = given["x" if name == "gated_self_attention" else "z"]
    names = ("q", "k", "v", "g") if name == "gated_self_attention" else ("a_p", "b_p", "a_g", "b_g")
    layers = [getattr(given["weights"], part) for part in names]
    once = 2 * x[..., 0].numel() * sum(layer[0].numel() for layer in layers)
    counted = []
    for nbytes in (0, 1e9):
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as flops:
            run(name, given, nbytes, implementation="tiled")
        counted.append(flops.get_total_flops())
    assert counted[0] - counted[1] == 2 * once  # two backward passes


def test_huge_pages_change_no_number() -> None:
    x = saved_projections.use_huge_pages(torch.empty(9 * 2**20))
    x.fill_(1.5)
    assert x.sum(dtype=torch.float64) == 1.5 * 9 * 2**20
