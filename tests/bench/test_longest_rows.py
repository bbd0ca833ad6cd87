"""The search for the longest row: few steps, and stand-ins that change no memory."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from ds4sci.bench import lm_training, longest_rows, stand_ins


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("limit", [17_000, 300_000])
def test_search_finds_the_longest_row_that_fits(limit, power) -> None:
    """For memory that grows linearly or quadratically, on top of a constant."""
    base = 0.05 * longest_rows.MEMORY_LIMIT
    calls = []

    def peak(n: int) -> int:
        calls.append(n)
        return int(base + (longest_rows.MEMORY_LIMIT - base) * (n / limit) ** power)

    found = longest_rows.find_longest(peak)
    assert limit * 0.93 <= found <= limit
    assert len(calls) <= 7


def test_attention_stand_in_has_the_shapes_of_attention() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    stand_ins.attention_stand_in(q, k, v).sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


def test_products_without_arithmetic_have_the_tensors_of_products() -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 4), (5, 4), (5,)))

    def gradients() -> list[torch.Tensor]:
        out = torch.nn.functional.linear(x, weight, bias)
        scores = out @ out.mT
        return [out, scores, *torch.autograd.grad(scores.sum() + out.sum(), (x, weight, bias))]

    exact = gradients()
    with stand_ins.ProductStandIn():
        found = gradients()
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
    assert all(one.count_nonzero() == 0 for one in found[:4])


def test_the_search_needs_few_steps() -> None:
    """Memory of a long row within 2 %: three short rows, and one at the length that they predict."""
    calls: list[int] = []

    def peak(n: int) -> int:
        calls.append(n)
        return int(6e8 + 8500 * n)

    assert longest_rows.find_longest(peak) * 8500 + 6e8 == pytest.approx(8e9, rel=0.02)
    assert calls[:3] == [32768, 65536, 131072]
    assert len(calls) == 4


@pytest.mark.nightly
@pytest.mark.parametrize("kind", lm_training.KINDS)
def test_simplifications_of_the_search_do_not_change_memory(kind) -> None:
    """Products and attention with and without arithmetic; one document and several. Of one document, attention packs
    keys and values, and their gradients: 5 × 4 × 32 bytes per token and thread."""

    def fresh(function, *arguments, **named):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments, **named).result()

    n = 24576
    for chunk_tokens in (None, longest_rows.CHUNK):
        real = fresh(lm_training.ds4sci_steps, kind, n, 1, longest_rows.DOCUMENT, chunk_tokens=chunk_tokens)[1]
        found = fresh(longest_rows.ds4sci_memory, n, {"kind": kind, "chunk_tokens": chunk_tokens})
        assert found == pytest.approx(real, rel=0.03)
    whole = fresh(lm_training.ds4sci_steps, kind, n, 1)[1]
    real = fresh(lm_training.ds4sci_steps, kind, n, 1, longest_rows.DOCUMENT)[1]
    packed = 5 * 4 * 32 * n * torch.get_num_threads()
    assert whole == pytest.approx(real, abs=0.03 * real + packed)
    real = fresh(lm_training.trainer_steps, kind, 8192, False, 1)[1]
    assert fresh(longest_rows.trainer_memory, kind, 8192, False) == pytest.approx(real, rel=0.03)
