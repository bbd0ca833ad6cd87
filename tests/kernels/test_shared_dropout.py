"""Shared dropout: the kernel contract, known answers of Random123, sharing and reproducibility of the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ds4sci.kernels import shared_dropout
from ds4sci.kernels.shared_dropout import KERNEL, philox
from ds4sci.nn.pair import SharedDropout
from tests.support.kernel_contract import KernelContract
from tests.support.kernel_runs import runnable_names

IMPLEMENTATIONS = runnable_names(KERNEL)
needs_triton = pytest.mark.skipif("triton" not in IMPLEMENTATIONS, reason="needs a GPU or TRITON_INTERPRET=1")
SEED = torch.tensor(2**53 + 11)


class TestContract(KernelContract):
    kernel = KERNEL

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        shapes = ((0, 3, 3, 8), (1, 0, 0, 8))
        return [{"x": torch.randn(shape), "p": 0.25, "axis": 1, "seed": torch.tensor(3)} for shape in shapes]


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def drop(x: torch.Tensor, p: float, axis: int, name: str, seed: torch.Tensor = SEED, **options: tuple) -> torch.Tensor:
    return shared_dropout(x, p, axis, seed, implementation=name, **options)


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ("00000000 00000000", "00000000 " * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff", "ffffffff " * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "a4093822 299f31d0",
            "243f6a88 85a308d3 13198a2e 03707344",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(key: str, counter: str, answer: str) -> None:
    """philox4x32 with 10 rounds from Random123's kat_vectors; the low word of the key is first."""
    low, high = (int(word, 16) for word in key.split())
    seed = (high << 32 | low) - (2**64 if high >> 31 else 0)
    words = philox(torch.tensor(seed), [torch.tensor(int(word, 16)) for word in counter.split()])
    assert [f"{int(word):08x}" for word in words] == answer.split()


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_mask_is_shared_along_the_axis_only(name: str, axis: int) -> None:
    out = drop(ones(2, 30, 30, 8), 0.3, axis, name)
    assert (out == out.narrow(axis, 0, 1)).all()
    for other in {0, 1, 2, 3} - {axis}:
        assert not (out == out.narrow(other, 0, 1)).all()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.9])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_rate_and_scale(name: str, p: float) -> None:
    """Of n elements n p are dropped, to within five standard deviations."""
    out = drop(ones(1, 1, 250, 64), p, 1, name)
    n = out.numel()
    assert abs((out == 0).sum() - n * p) <= 5 * (n * p * (1 - p)) ** 0.5
    kept = out[out != 0]
    assert (kept == torch.ones(()) / (1 - p)).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_only_the_seed_determines_the_mask(name: str) -> None:
    x = ones(1, 3, 20, 16)
    first = drop(x, 0.5, 1, name)
    torch.manual_seed(5)
    assert torch.equal(drop(x, 0.5, 1, name), first)
    for seed in (2**53 + 12, 11, -(2**53) - 11):  # a different low word, a different high word
        assert not torch.equal(drop(x, 0.5, 1, name, torch.tensor(seed)), first)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_rank_drops_the_elements_of_the_whole_tensor(name: str, axis: int) -> None:
    x = torch.randn(3, 10, 12, 9, generator=torch.Generator().manual_seed(0))
    whole = drop(x, 0.4, axis, name)
    part = drop(x[1:, 4:9, 7:], 0.4, axis, name, starts=(1, 4, 7))
    assert torch.equal(part, whole[1:, 4:9, 7:])
    assert not torch.equal(drop(x[1:, 4:9, 7:], 0.4, axis, name), part)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_gradient_is_the_mask_times_the_gradient(name: str) -> None:
    x = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = drop(x, 0.4, 2, name)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    mask = drop(torch.ones_like(x), 0.4, 2, name)
    assert torch.equal(torch.autograd.grad(out, x, weight, retain_graph=True)[0], weight * mask)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], mask)  # the gradient has strides of 0


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_second_derivatives(name: str) -> None:
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (first,) = torch.autograd.grad(drop(x, 0.4, 1, name).square().sum(), x, create_graph=True)
    mask = drop(torch.ones_like(x), 0.4, 1, name)
    torch.testing.assert_close(torch.autograd.grad(first.sum(), x)[0], 2 * mask**2)


def test_errors() -> None:
    x = ones(1, 2, 3, 4)
    for p in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=rf"p must be in \[0, 1\); got {p}"):
            shared_dropout(x, p, 1, SEED)
    for wrong, axis in ((x, 0), (x, 3), (x[0], 1)):
        with pytest.raises(ValueError, match=r"x must be \[b, i, j, c\] and axis 1 or 2"):
            shared_dropout(wrong, 0.1, axis, SEED)
    for seed in (torch.tensor(1, dtype=torch.int32), torch.tensor([1])):
        with pytest.raises(ValueError, match="seed must be an int64"):
            shared_dropout(x, 0.1, 1, seed)


def test_the_module_uses_torchs_generator_and_is_the_identity_in_evaluation() -> None:
    module, x = SharedDropout(0.5, axis=1), ones(1, 4, 20, 8)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(x), first)
    assert module.eval()(x) is x


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_drops_the_same_elements(reentrant: bool) -> None:
    module = SharedDropout(0.5, axis=2)
    x = torch.randn(1, 6, 20, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def block(x: torch.Tensor) -> torch.Tensor:
        return module(x).square()

    torch.manual_seed(3)
    (want,) = torch.autograd.grad(block(x).sum(), x)
    torch.manual_seed(3)
    out = checkpoint(block, x, use_reentrant=reentrant)
    torch.rand(7)  # other random numbers in between
    out.sum().backward()
    assert torch.equal(x.grad, want)


@needs_triton
@pytest.mark.parametrize(
    ("p", "dtype"),
    [(p, torch.float32) for p in (0.0, 0.15, 0.75, 1 - 2**-33)] + [(0.15, torch.bfloat16), (0.15, torch.float16)],
)
def test_triton_has_the_bits_of_the_reference(p: float, dtype: torch.dtype) -> None:
    """Also for infinities and NaN, where 0 times x is NaN."""
    x = torch.randn(2, 11, 9, 21, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    for axis in (1, 2):
        for one in (x, x.transpose(1, 2), x.permute(3, 1, 2, 0), x[:, ::2, 1:, ::3]):
            want = drop(one, p, axis, "reference", starts=(0, 5, 2**31)).nan_to_num(9.0)
            got = drop(one, p, axis, "triton", starts=(0, 5, 2**31)).nan_to_num(9.0)
            assert torch.equal(got, want)
            assert torch.equal(got.signbit(), want.signbit())


@needs_triton
def test_triton_saves_only_the_seed_and_passes_opcheck() -> None:
    x = torch.randn(1, 3, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        drop(x, 0.4, 1, "triton")
    assert [tensor.numel() for tensor in saved] == [1]
    torch.library.opcheck(torch.ops.ds4sci.shared_dropout.default, (x, SEED, 0.4, 1, [0, 0, 0]))


@needs_triton
def test_triton_compiles_without_graph_breaks() -> None:
    x = torch.randn(1, 3, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    want = drop(x, 0.4, 1, "triton")
    compiled = torch.compile(lambda x: drop(x, 0.4, 1, "triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)
    assert torch.equal(torch.autograd.grad(compiled(x).sum(), x)[0], torch.autograd.grad(want.sum(), x)[0])


def test_a_seed_that_is_not_a_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3"):
        shared_dropout(torch.randn(1, 2, 2, 4), 0.3, 1, 3)  # type: ignore[arg-type]
