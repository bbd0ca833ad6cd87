"""FLOP formulas: our operators against a count inside their tiled implementations, torch's attention by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ds4sci.kernels import KERNELS, varlen_attention
from ds4sci.kernels.flop_formulas import FORMULAS, causal_pairs

TILED = (
    "evoformer_attention", "gated_self_attention", "outer_product_mean", "pair_bias", "transition",
    "triangle_multiplication",
)  # fmt: skip


class Calls(TorchDispatchMode):
    """The calls of our operators, with their results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ds4sci":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def counted(run: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    return counter.get_total_flops()


def test_every_operator_with_matrix_products_has_a_formula() -> None:
    ours = {name for name in dir(torch.ops.ds4sci) if f"ds4sci::{name}" in OPDEFS}
    without_products = {name for name in ours if name.startswith(("layer_norm", "shared_dropout"))}
    assert {str(op).rpartition(".")[2] for op in FORMULAS if "ds4sci" in str(op)} == ours - without_products


@pytest.mark.parametrize("needed", ["all", "first"])
@pytest.mark.parametrize("name", TILED)
def test_formulas_count_what_the_tiled_implementation_computes(name: str, needed: str) -> None:
    for case in KERNELS[name].cases[:2]:
        inputs = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
        tensors = [key for key, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
        for key in tensors if needed == "all" else tensors[:1]:
            inputs[key] = inputs[key].detach().requires_grad_("mask" not in key)
        with Calls() as seen:
            out = KERNELS[name](**inputs, implementation="tiled")
            out.sum().backward()
        assert [func.name().split("::")[1].split(".")[0] for func, _ in seen.calls] == [name, f"{name}_backward"]
        for func, args in seen.calls:
            inside = OPDEFS[func.name().split(".")[0]]._init_fn
            with torch.no_grad():
                assert counted(lambda call=func, values=args: call(*values)) == counted(
                    lambda call=inside, values=args: call(*values)
                ), f"{case.name}: {func.name()}"


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_torch_on_a_cpu(causal: bool) -> None:
    b, h, n, d = 2, 3, 65, 16
    q, k, v = (torch.randn(b, h, n, d, requires_grad=True) for _ in range(3))

    def forward() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    pairs = b * h * (n * (n + 1) // 2 if causal else n * n)
    with FlopCounterMode(display=False) as plain:
        forward()
    assert plain.get_total_flops() == 0, "torch counts it now: the formula is not needed any more"
    assert counted(forward) == 2 * 2 * pairs * d
    assert counted(lambda: forward().sum().backward()) == (2 + 5) * 2 * pairs * d


def test_causal_pairs() -> None:
    for queries in (1, 3, 8):
        for keys in (1, 5, 8):
            assert causal_pairs(queries, keys) == sum(j <= i for i in range(queries) for j in range(keys))


def test_attention_within_documents() -> None:
    lengths, h, d = (5, 40, 19), 2, 8
    n = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    spans = torch.stack([ends - torch.tensor(lengths), ends], 1)
    q, k, v = (torch.randn(n, h, d, requires_grad=True) for _ in range(3))
    case = KERNELS["varlen_attention"].get_implementation("native")
    if reason := case.why_not(q, k, v, spans, causal=True):
        pytest.skip(reason)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    total = counted(lambda: varlen_attention(q, k, v, spans, causal=True, implementation="native").sum().backward())
    assert total == (2 + 5) * 2 * pairs * h * d
