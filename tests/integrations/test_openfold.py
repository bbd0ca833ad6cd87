"""Patched OpenFold-style modules: error, arguments, and modules with the same attributes but different results."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ds4sci.integrations import patch
from tests.support import openfold_modules as openfold
from tests.support.patched_model import BIG, check_accuracy, check_autocast_dtypes, randomize

C_M, C_Z, ROWS = 24, 32, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(*lead: int, n: int) -> tuple[Tensor, Tensor]:
    """Masks of MSA and pairs: the last residues are padding, some MSA positions are masked."""
    real = torch.ones(*lead, n)
    real[..., n - 3 :] = 0
    msa = (torch.rand(*lead, ROWS, n, generator=torch.Generator().manual_seed(3)) > 0.2).float()
    return msa * real.unsqueeze(-2), real.unsqueeze(-1) * real.unsqueeze(-2)


class Evoformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([openfold.EvoformerBlock(C_M, C_Z) for _ in range(2)])

    def forward(self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            m, z = block(m, z, msa_mask, pair_mask, chunk_size=4)
        return m, z


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    for module in model.modules():
        if hasattr(module, "inf"):
            module.inf = BIG
    yield


def evoformer_call(*lead: int, n: int, dtype: torch.dtype = torch.float32) -> Callable[..., object]:
    m, z = normal(*lead, ROWS, n, C_M).to(dtype), normal(*lead, n, n, C_Z, seed=1).to(dtype)
    msa_mask, pair_mask = masks(*lead, n=n)

    def call(model: nn.Module, leaf: Callable[[Tensor], Tensor]) -> list[Tensor]:
        m_in, z_in = leaf(m), leaf(z)
        return list(model(m_in, z_in, msa_mask.to(m_in.dtype), pair_mask.to(m_in.dtype)))

    return call


@pytest.mark.parametrize(
    ("lead", "n", "dtype"),
    [((2,), 17, torch.float32), ((), 17, torch.float32), ((2, 2), 7, torch.float32), ((2,), 33, torch.bfloat16)],
)
def test_evoformer(lead: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
    call = evoformer_call(*lead, n=n, dtype=dtype)
    # the error of a bias's gradient in bf16 is that of few large elements: in single draws 0.25 to 7 times the model's
    # own, 1.4 times over thirteen
    draws = 6 if dtype is torch.bfloat16 else 3
    check_accuracy(Evoformer().train(), call, narrow=lambda m: m.to(dtype), widen=widen, dtype=dtype, draws=draws)


def test_evoformer_under_autocast() -> None:
    check_accuracy(Evoformer(), evoformer_call(2, n=17), widen=widen, autocast=torch.bfloat16)


def test_dtypes_under_autocast() -> None:
    assert len(check_autocast_dtypes(Evoformer())) == 5


def test_all_evoformer_modules_are_replaced() -> None:
    report = patch(Evoformer(), verbose=False)
    assert {name: count for name, (count, _) in report.replaced.items()} == {
        "MSARowAttentionWithPairBias": 2, "MSAAttention": 2, "MSATransition": 2, "OuterProductMean": 2,
        "TriangleMultiplicationOutgoing": 2, "TriangleMultiplicationIncoming": 2, "TriangleAttention": 4,
        "PairTransition": 2,
    }  # fmt: skip
    assert not report.skipped
    assert not report.unrecognized


class Unscaled(openfold.Attention):
    """Attention without the scaling of queries."""

    def forward(self, q_x: Tensor, kv_x: Tensor, biases: list[Tensor]) -> Tensor:
        return super().forward(q_x=q_x, kv_x=kv_x, biases=[self.c_hidden * bias for bias in biases])


class BiasNotDivided(openfold.OuterProductMean):
    def forward(self, m: Tensor, mask: Tensor) -> Tensor:
        count = torch.einsum("...si,...sj->...ij", mask, mask).unsqueeze(-1)
        return super().forward(m, mask) + self.linear_out.bias * (1 - 1 / (self.eps + count))


class InvertedMask(openfold.TriangleAttention):
    """Triangle attention whose mask is 1 at padding."""

    def forward(self, x: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        return super().forward(x, None if mask is None else 1 - mask)


class ExtraArgument(openfold.TriangleAttention):
    def forward(self, x: Tensor, mask: Tensor, recycle: Tensor) -> Tensor:
        return super().forward(x, mask) + recycle


class WithDropout(openfold.PairTransition):
    """Transition with dropout in training."""

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        return super().forward(nn.functional.dropout(z, 0.5, self.training), mask)


class StoppedGradient(openfold.PairTransition):
    """Transition that detaches its input."""

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        return super().forward(z.detach(), mask)


def with_dropout(p: float) -> nn.Module:
    module = openfold.TriangleAttention(C_Z, 8, 4)
    module.mha.dropout = nn.Dropout(p)
    return module


def unscaled() -> nn.Module:
    module = openfold.TriangleAttention(C_Z, 8, 4)
    module.mha = Unscaled(C_Z, C_Z, C_Z, 8, 4)
    return module


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (unscaled, "its output differs"),
        (lambda: BiasNotDivided(C_M, C_Z, 4), "its output differs"),
        (lambda: InvertedMask(C_Z, 8, 4), "its output differs"),
        (lambda: WithDropout(C_Z, 2), "its output in training differs"),
        (lambda: StoppedGradient(C_Z, 2), "its gradients differ"),
        (lambda: with_dropout(0.5), "its mha.dropout applies dropout in training"),
        (lambda: ExtraArgument(C_Z, 8, 4), "missing 1 required positional argument: 'recycle'"),
    ],
)
def test_modules_with_different_results_are_skipped(make: Callable[[], nn.Module], why: str) -> None:
    model = nn.ModuleList([make(), openfold.PairTransition(C_Z, 2)])
    report = patch(model, verbose=False)
    assert list(report.replaced) == ["PairTransition"]
    ((name, reason),) = report.skipped
    assert name == type(model[0]).__name__
    assert why in reason
    assert f"skipped: 1 {name}: {reason}" in str(report)
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize(
    ("make", "rows", "c"),
    [
        (lambda: openfold.TriangleMultiplicativeUpdate(C_Z, 16), 5, C_Z),
        (lambda: openfold.OuterProductMean(C_M, C_Z, 4), 3, C_M),
    ],
)
def test_mask_with_gradient_falls_back(make: Callable[[], nn.Module], rows: int, c: int) -> None:
    module, x = randomize(make()), normal(rows, 5, c)
    mask = torch.rand(rows, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (want,) = torch.autograd.grad(module(x, mask).square().sum(), mask)
    patch(module, verbose=False)
    with pytest.warns(RuntimeWarning, match="falls back to its original forward: its mask requires a gradient"):
        (got,) = torch.autograd.grad(module(x, mask).square().sum(), mask)
    assert torch.equal(got, want)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, mask)


def test_in_place_update() -> None:
    module = randomize(openfold.TriangleMultiplicativeUpdate(C_Z, 16))
    z, mask = normal(7, 7, C_Z), masks(n=7)[1]
    with torch.no_grad():
        want = [module(z.clone(), mask, True, add) for add in (False, True)]
        patch(module, verbose=False)
        for add, expected in zip((False, True), want, strict=True):
            given = z.clone()
            assert module(given, mask=mask, inplace_safe=True, _add_with_inplace=add) is given
            torch.testing.assert_close(given, expected)


def test_positional_and_keyword_arguments() -> None:
    module, m = randomize(openfold.MSATransition(C_M, 2)), normal(3, 4, C_M)
    mask = masks(n=4)[0][:3]
    want = module(m, mask)
    patch(module, verbose=False)
    for got in (module(m, mask), module(m=m, mask=mask), module(m, mask, 4), module(m, mask=mask, chunk_size=4)):
        torch.testing.assert_close(got, want)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'm'"):
        module(mask=mask)
    with pytest.raises(TypeError, match="takes from 2 to 4 positional arguments"):
        module(m, mask, 4, 5)
    with (
        pytest.warns(RuntimeWarning, match="MSATransition falls back to its original forward: z is set"),
        pytest.raises(TypeError, match="unexpected keyword argument 'z'"),
    ):
        module(m, z=mask)


def test_kernel_options_are_ignored_and_unknown_options_fall_back() -> None:
    module = randomize(openfold.TriangleAttention(C_Z, 8, 4))
    x = normal(5, 5, C_Z)
    want = module(x)
    patch(module, verbose=False)
    torch.testing.assert_close(module(x, use_deepspeed_evo_attention=True, chunk_size=2), want)
    attention, m = randomize(openfold.MSAAttention(C_M, 8, 3)), normal(3, 5, C_M)
    want = attention(m)
    patch(attention, verbose=False)
    with pytest.warns(RuntimeWarning, match="MSAAttention falls back to its original forward: use_flash is set"):
        own = attention(m, use_flash=True)
    assert torch.equal(own, want)
