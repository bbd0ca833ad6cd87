"""Patched modules of Boltz, OpenFold3 and Protenix: error, kernel options, report of calls, and mixed dtypes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from ds4sci.integrations import patch
from tests.support import alphafold3_modules as af3
from tests.support import openfold_modules as openfold
from tests.support.patched_model import BIG, check_accuracy, check_autocast_dtypes, randomize

C, N, ROWS = 32, 9, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Z, M = normal(2, N, N, C), normal(2, ROWS, N, C, seed=1)
REAL = torch.ones(2, N)
REAL[:, -2:] = 0
PAIR_MASK = REAL[:, :, None] * REAL[:, None]
MSA_MASK = (torch.rand(2, ROWS, N, generator=torch.Generator().manual_seed(3)) > 0.3).float() * REAL[:, None]

MAKERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "Boltz transition": (lambda: af3.BoltzTransition(C, 48), {"chunk_size": 16}),
    "Boltz outgoing": (lambda: af3.TriangleMultiplicationOutgoing(C), {"mask": PAIR_MASK, "use_kernels": False}),
    "Boltz incoming": (lambda: af3.TriangleMultiplicationIncoming(C), {"mask": PAIR_MASK, "use_kernels": False}),
    "Boltz attention": (lambda: af3.BoltzTriangleAttention(C, 8, 4), {"mask": PAIR_MASK, "use_kernels": False}),
    "Boltz MSA": (lambda: af3.BoltzOuterProductMean(C, 6, 24), {"mask": MSA_MASK}),
    "OpenFold3 transition": (lambda: af3.SwiGLUTransition(C, 2), {"mask": PAIR_MASK, "chunk_size": 4}),
    "OpenFold3 attention": (
        lambda: af3.OpenFold3TriangleAttention(C, 8, 4), {"mask": PAIR_MASK, "use_cueq_triangle_kernels": False}
    ),
    "Protenix transition": (lambda: af3.ProtenixTransition(C, 2), {}),
    "Protenix attention": (
        lambda: af3.ProtenixTriangleAttention(C, 8, 4), {"mask": PAIR_MASK, "triangle_attention": "torch"}
    ),
    "Protenix multiplication": (
        lambda: af3.ProtenixMultiplication(C, 16), {"mask": PAIR_MASK, "triangle_multiplicative": "torch"}
    ),
    "OpenFold fused": (lambda: openfold.FusedTriangleMultiplicativeUpdate(C, 16), {"mask": PAIR_MASK}),
}  # fmt: skip


def given(name: str) -> tuple[Tensor, dict[str, Any]]:
    return M if name == "Boltz MSA" else Z, MAKERS[name][1]


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    for module in model.modules():
        if hasattr(module, "inf"):
            module.inf = BIG
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def call(name: str) -> Callable[[nn.Module, Callable[[Tensor], Tensor]], list[Tensor]]:
    def run(model: nn.Module, leaf: Callable[[Tensor], Tensor]) -> list[Tensor]:
        first, others = given(name)
        x = leaf(first)
        return [model(x, **{k: v.to(x.dtype) if isinstance(v, Tensor) else v for k, v in others.items()})]

    return run


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize("name", MAKERS)
def test_error_against_fp64(name: str, autocast: torch.dtype | None) -> None:
    check_accuracy(MAKERS[name][0](), call(name), widen=widen, autocast=autocast, draws=4)


@pytest.mark.parametrize("name", MAKERS)
def test_torch_options_run_on_the_kernels(name: str) -> None:
    model = randomize(MAKERS[name][0]())
    report = patch(model, verbose=False)
    first, others = given(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(first, **others)
    ((kind, calls),) = report.modules.values()
    assert (kind, calls.on_kernels, calls.fallbacks) == (type(model).__name__, 1, {})


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dtypes_under_autocast(training: bool) -> None:
    modules = nn.ModuleList([make() for make, _ in MAKERS.values()]).train(training)
    assert len(check_autocast_dtypes(modules)) == 9


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: af3.OpenFold3Multiplication(C, C), {"use_cueq_triangle_kernels": True}),
        (lambda: af3.OpenFold3Multiplication(C, C), {}),
        (lambda: af3.ProtenixMultiplication(C, C), {"triangle_multiplicative": "cuequivariance"}),
        (lambda: af3.ProtenixMultiplication(C, 16), {"triangle_multiplicative": "cuequivariance"}),
        (lambda: af3.ProtenixMultiplication(C, 16), {"triangle_multiplicative": "torch"}),
    ],
)
@pytest.mark.parametrize("adds", [True, False])
def test_flags_for_updates_in_place(make: Callable[[], nn.Module], options: dict[str, Any], adds: bool) -> None:
    """The result and what is left in z are the original's, where cuEquivariance precedes ``inplace_safe``, too."""
    model, flags = randomize(make()).eval(), {"inplace_safe": True, "_add_with_inplace": adds}
    with torch.no_grad():
        left = Z.clone()
        want = model(left, mask=PAIR_MASK, **flags, **options)
        report = patch(model, verbose=False)
        z = Z.clone()
        got = model(z, mask=PAIR_MASK, **flags, **options)
    torch.testing.assert_close((got, z), (want, left), rtol=1e-4, atol=1e-4)
    assert (got is z) == (want is left)
    assert all(calls.on_kernels == 1 for _, calls in report.modules.values())


def test_a_transition_to_another_width_is_skipped_with_the_reason() -> None:
    model = af3.BoltzTransition(C, 48)
    model.fc3 = nn.Linear(48, 20, bias=False)
    with pytest.raises(ValueError, match=f"1 BoltzTransition: it maps {C} channels to 20"):
        patch(model)


def test_gpu_kernel_options_run_on_the_kernels_and_unknown_ones_fall_back() -> None:
    attention, multiply = (
        randomize(af3.ProtenixTriangleAttention(C, 8, 4)),
        randomize(af3.ProtenixMultiplication(C, 16)),
    )
    boltz = randomize(af3.BoltzTriangleAttention(C, 8, 4))
    want = [module(Z, PAIR_MASK) for module in (attention, multiply, boltz)]
    for module in (attention, multiply, boltz):
        patch(module, verbose=False)
    for kernel in ("cuequivariance", "triattention", "deepspeed"):
        torch.testing.assert_close(attention(Z, PAIR_MASK, triangle_attention=kernel), want[0])
    torch.testing.assert_close(multiply(Z, PAIR_MASK, triangle_multiplicative="cuequivariance"), want[1])
    torch.testing.assert_close(boltz(Z, PAIR_MASK, use_kernels=True), want[2])
    with (
        pytest.warns(RuntimeWarning, match="falls back to its original forward: triangle_attention is 'flash4'"),
        pytest.raises(ValueError, match="no such kernel here: flash4"),
    ):
        attention(Z, PAIR_MASK, triangle_attention="flash4")


class GlobalAttention(nn.Module):
    """Has a name similar to a supported module, but other attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_q = nn.Linear(C, C)
        self.inner_attention = nn.MultiheadAttention(C, 2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = openfold.EvoformerBlock(C, C)
        self.others = nn.ModuleList([GlobalAttention(), GlobalAttention()])

    def forward(self, m: Tensor, z: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return self.block(m, z, MSA_MASK, PAIR_MASK, **options)


def test_report_counts_calls_and_lists_unrecognized_modules() -> None:
    model = randomize(Model())
    report = patch(model, verbose=False)
    assert report.unrecognized == {"GlobalAttention": 2}
    assert "skipped: 2 GlobalAttention: not a supported module type" in str(report)
    assert str(report).count("no calls yet") == len(report.replaced) == 8
    model(M, Z)
    assert str(report).splitlines()[4].split()[-6:] == ["1", "of", "1", "calls", "on", "kernels"]
    assert all(calls.on_kernels == 1 for _, calls in report.modules.values())
    handle = model.block.pair_stack.tri_att_end.linear.register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match="TriangleAttention falls back to its original forward"):
        model(M, Z)
    handle.remove()
    calls = report.calls["TriangleAttention"]
    assert calls.on_kernels == 3
    assert calls.fallbacks == {"its linear has hooks, which the kernels would not call": 1}
    assert report.modules["block.pair_stack.tri_att_end"][1].fallbacks.total() == 1
    assert "3 of 4 calls on kernels; 1 by the original method: its linear has hooks" in str(report)


def test_patching_only_unrecognized_modules_raises() -> None:
    with pytest.raises(ValueError, match=r"no module to patch \(2 GlobalAttention: not a supported module type\)"):
        patch(nn.ModuleList([GlobalAttention(), GlobalAttention()]))


def test_warning_if_all_modules_fall_back() -> None:
    model = randomize(nn.Sequential(openfold.PairTransition(C, 2), openfold.PairTransition(C, 2)))
    report = patch(model, verbose=False)
    x = Z.half()  # the weights are fp32
    seen = []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for module in model:
                with pytest.raises(RuntimeError):
                    module(x)
        seen += [w for w in caught if "none of the 2 patched modules has run on the kernels" in str(w.message)]
    assert len(seen) == 1
    assert "0 of 6 calls on kernels; 6 by the original method: activations are float16 and weights float32" in str(
        report
    )


def test_fp32_weights_with_bf16_activations() -> None:
    """OpenFold's layers cast their weights outside autocast; the kernels run and the error bound holds."""
    m, z = M.bfloat16(), Z.bfloat16()

    def run(model: nn.Module, leaf: Callable[[Tensor], Tensor]) -> list[Tensor]:
        m_in, z_in = leaf(m), leaf(z)
        return list(model(m_in, z_in, MSA_MASK.to(m_in.dtype), PAIR_MASK.to(m_in.dtype)))

    block = openfold.EvoformerBlock(C, C, msa_dropout=0.0, pair_dropout=0.0)
    check_accuracy(block, run, widen=widen, dtype=torch.bfloat16, draws=4)


def test_fp32_masks_with_bf16_activations_and_fp32_weights() -> None:
    """A product with a wider mask has the wider dtype; output dtypes equal those of the original."""
    model = randomize(Model()).eval()
    with torch.no_grad():
        want = model(M.bfloat16(), Z.bfloat16())
        report = patch(model, verbose=False)
        got = model(M.bfloat16(), Z.bfloat16())
    assert all((calls.on_kernels, calls.fallbacks.total()) == (1, 0) for _, calls in report.modules.values()), report
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.02 * other.norm()


def test_layers_without_casts_or_with_fixed_precision_fall_back() -> None:
    plain = randomize(af3.BoltzTransition(C, 48))
    patch(plain, verbose=False)
    with (
        pytest.warns(RuntimeWarning, match="activations are bfloat16 and weights float32"),
        pytest.raises(RuntimeError),
    ):
        plain(Z.bfloat16())
    precise = randomize(openfold.PairTransition(C, 2))
    precise.linear_2.precision = torch.float32
    want = precise(Z.bfloat16())
    patch(precise, verbose=False)
    torch.testing.assert_close(precise(Z), precise(Z.clone()))
    with pytest.warns(RuntimeWarning, match="one of its linear layers always computes in float32"):
        assert torch.equal(precise(Z.bfloat16()), want)
