"""The kernels' references against formulas written another way, in fp64; masks; dispatch and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ds4sci.kernels import KERNELS, evoformer_attention, outer_product_mean, transition, triangle_multiplication
from ds4sci.kernels.spec import Implementation, Kernel, prefer
from ds4sci.kernels.triangle_multiplication import Weights


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (5, 17), (63, 2)])
def test_attention_is_torchs_with_summed_biases(queries: int, keys: int) -> None:
    b, s, h, d = 2, 3, 2, 8
    q, k, v = normal(b, s, queries, h, d), normal(b, s, keys, h, d, seed=1), normal(b, s, keys, h, d, seed=2)
    bias, gate = normal(b, h, queries, keys), normal(b, s, queries, h, d, seed=3)
    mask = torch.rand(b, s, keys, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[..., 0] = True
    got = evoformer_attention(q, k, v, mask, bias, gate)
    summed = bias.unsqueeze(1).expand(b, s, h, queries, keys).masked_fill(~mask[:, :, None, None, :], -torch.inf)
    want = F.scaled_dot_product_attention(*(x.transpose(2, 3) for x in (q, k, v)), attn_mask=summed).transpose(2, 3)
    torch.testing.assert_close(got, want * torch.sigmoid(gate))
    added = torch.where(mask, 0.0, -1e9).double()
    torch.testing.assert_close(evoformer_attention(q, k, v, added, bias, gate), got)


def test_a_query_without_keys_gives_nothing_and_gets_no_gradient() -> None:
    q, k, v = (normal(1, 2, 5, 2, 8, seed=i).requires_grad_() for i in range(3))
    bias = normal(1, 2, 5, 5).requires_grad_()
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    mask[0, 1] = False
    out = evoformer_attention(q, k, v, mask, bias)
    assert (out[0, 1] == 0).all()
    out.sum().backward()
    for x in (q, k, v):
        assert (x.grad[0, 1] == 0).all()
        assert x.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_column_attention_is_row_attention_of_a_transposed_view() -> None:
    x = normal(1, 4, 6, 2, 8)
    rows = evoformer_attention(*(x.transpose(1, 2),) * 3)
    copied = evoformer_attention(*(x.transpose(1, 2).contiguous(),) * 3)
    torch.testing.assert_close(rows, copied)


@pytest.mark.parametrize("rows", [1, 9])
def test_outer_product_mean_is_its_definition_for_few_and_many_rows(rows: int) -> None:
    """Below c rows the weight is applied first; the numbers are the same."""
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


@pytest.mark.parametrize("direction", ["outgoing", "incoming"])
def test_triangle_multiplication_is_its_definition(direction: str) -> None:
    n, c, hidden = 5, 6, 4
    z = normal(1, n, n, c)
    real = torch.tensor([[True] * 4 + [False]])
    mask = real.unsqueeze(-1) & real.unsqueeze(-2)
    layer = lambda c_out, c_in, seed: (normal(c_out, c_in, seed=seed), normal(c_out, seed=seed))  # noqa: E731
    norm = lambda c_norm, seed: (normal(c_norm, seed=seed), normal(c_norm, seed=seed + 1))  # noqa: E731
    weights = Weights(
        norm(c, 10), *(layer(hidden, c, 20 + i) for i in range(4)),
        norm(hidden, 30), layer(c, hidden, 40), layer(c, c, 50),
    )  # fmt: skip
    x = F.layer_norm(z, (c,), *weights.norm_in)
    a = torch.sigmoid(F.linear(x, *weights.a_g)) * F.linear(x, *weights.a_p) * mask.unsqueeze(-1)
    b = torch.sigmoid(F.linear(x, *weights.b_g)) * F.linear(x, *weights.b_p) * mask.unsqueeze(-1)
    product = torch.zeros(1, n, n, hidden, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                product[:, i, j] += a[:, i, k] * b[:, j, k] if direction == "outgoing" else a[:, k, i] * b[:, k, j]
    want = F.linear(F.layer_norm(product, (hidden,), *weights.norm_out), *weights.z)
    want = want * torch.sigmoid(F.linear(x, *weights.g))
    torch.testing.assert_close(triangle_multiplication(z, mask, weights, direction), want)


def test_transition_is_its_definition() -> None:
    x = normal(2, 3, 4)
    norm, first, second = (normal(4, seed=1), normal(4, seed=2)), (normal(8, 4), normal(8)), (normal(4, 8), normal(4))
    hidden = F.linear(F.layer_norm(x, (4,), *norm), *first).clamp(min=0)
    torch.testing.assert_close(transition(x, *norm, *first, *second), F.linear(hidden, *second))


def two_ways() -> Kernel:
    return Kernel(
        "doubled",
        lambda x: 2 * x,
        (
            Implementation("fast", lambda x: x + x, lambda x: "it wants fp32" if x.dtype != torch.float32 else None),
            Implementation("reference", lambda x: 2 * x, lambda x: None if x.numel() else "there is nothing to double"),
        ),
    )


def test_the_first_willing_implementation_runs_and_a_named_one_says_why_not() -> None:
    kernel = two_ways()
    assert kernel(torch.ones(2)).tolist() == [2, 2]
    assert kernel(torch.ones(2).double()).tolist() == [2, 2]
    with pytest.raises(ValueError, match="'fast' cannot run here: it wants fp32"):
        kernel(torch.ones(2).double(), implementation="fast")
    with pytest.raises(ValueError, match="fast: it wants fp32 · reference: there is nothing"):
        kernel(torch.ones(0).double())
    with pytest.raises(ValueError, match="there are: fast, reference"):
        kernel(torch.ones(2), implementation="cuda")


def test_a_run_file_prefers_an_implementation_by_name() -> None:
    kernel = two_ways()
    try:
        prefer({"doubled": "fast"}, {"doubled": kernel})
        with pytest.raises(ValueError, match="it wants fp32"):
            kernel(torch.ones(2).double())
    finally:
        prefer({}, {})
    with pytest.raises(ValueError, match="no operation; there are: evoformer_attention"):
        prefer({"flash": "fast"}, KERNELS)
    with pytest.raises(ValueError, match="no implementation 'cutlass'"):
        prefer({"evoformer_attention": "cutlass"}, KERNELS)
