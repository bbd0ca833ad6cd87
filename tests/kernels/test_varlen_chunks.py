"""Attention of chunks of queries, and its gradients, against the reference on the whole row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels.varlen_attention import KERNEL, native
from ds4sci.kernels.varlen_attention.cases import CASES
from ds4sci.kernels.varlen_attention.chunks import Queries

BY_NAME = {case.name: case for case in CASES}


def whole(given: dict[str, Any]) -> list[torch.Tensor]:
    """Output and gradients of the reference in fp64."""
    wide = {name: x.double().requires_grad_() for name, x in given.items() if name in ("q", "k", "v")}
    out = KERNEL.reference(**(given | wide))
    return [out.detach(), *torch.autograd.grad(out, list(wide.values()), weight(out).double())]


def weight(out: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).sin().to(out.dtype)


def chunked(given: dict[str, Any], size: int, order: str) -> list[torch.Tensor]:
    """The same from chunks of ``size`` queries; gradients from the last chunk to the first, or in another order."""
    q, k, v = (given[name] for name in "qkv")
    scale = q.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    parts = [Queries(given["doc_spans"], first, given["causal"], scale) for first in range(0, len(q), size)]
    found = [one.attend(q[one.first : one.first + size], k, v) for one in parts]
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
    out = torch.cat([one for one, _ in found])
    grad, grads = weight(out), {}
    for i in reversed(range(len(parts))) if order == "last first" else range(len(parts)):
        rows = slice(parts[i].first, parts[i].first + size)
        grads[i] = parts[i].add_gradients(grad[rows], q[rows], k, v, found[i][0], found[i][1], grad_k, grad_v)
    return [out, torch.cat([grads[i] for i in range(len(parts))]), grad_k, grad_v]


@pytest.mark.parametrize("size", [7, 64, 10_000])
@pytest.mark.parametrize("name", BY_NAME)
def test_torch_in_fp64(name: str, size: int) -> None:
    given = BY_NAME[name].make(torch.Generator().manual_seed(0), torch.float64, torch.device("cpu"))
    for got, want in zip(chunked(given, size, "first first"), whole(given), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()) + 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [16, 100])
@pytest.mark.parametrize("name", BY_NAME)
def test_native(name: str, size: int, dtype: torch.dtype) -> None:
    """The error is at most 3 times that of the implementation on the whole row."""
    given = BY_NAME[name].make(torch.Generator().manual_seed(0), dtype, torch.device("cpu"))
    if reason := native.why_not(given["q"], given["k"], given["v"], given["doc_spans"]):
        pytest.skip(reason)
    leaves = {name: given[name].detach().requires_grad_() for name in "qkv"}
    out = native.run(**(given | leaves))
    plain = [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weight(out.detach()))]
    for got, one, want in zip(chunked(given, size, "last first"), plain, whole(given), strict=True):
        assert got.isfinite().all()
        error, honest = ((x.double() - want).norm() for x in (got, one))
        assert error <= 3 * max(float(honest), 0.3 * torch.finfo(dtype).eps * float(want.norm())), (error, honest)


def test_keys_after_the_last_query_are_not_read_and_keep_their_gradients() -> None:
    given = BY_NAME["past the tiles by one"].make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
    q, k, v = (given[name] for name in "qkv")
    part = Queries(given["doc_spans"], 100, True, 0.2)
    want, saved = part.attend(q[100:150], k, v)
    k[150:], v[150:] = torch.nan, torch.nan
    got, _ = part.attend(q[100:150], k, v)
    assert torch.equal(got, want)
    grad_k, grad_v = torch.full(k.shape, 5.0), torch.full(v.shape, 5.0)
    part.add_gradients(torch.ones_like(got), q[100:150], k, v, got, saved, grad_k, grad_v)
    assert (grad_k[150:] == 5).all()
    assert (grad_v[150:] == 5).all()
    assert not (grad_v[:150] == 5).any()


def test_a_document_outside_the_row_is_refused() -> None:
    x = torch.randn(4, 1, 8)
    with pytest.raises(ValueError, match="within the 4 tokens"):
        Queries(torch.tensor([[0, 5]]), 0, True, 1.0).attend(x, x, x)
