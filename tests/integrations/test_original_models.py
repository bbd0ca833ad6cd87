"""Patched blocks of the original OpenFold, OpenFold3, Boltz and Protenix (see ``original_models``)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from ds4sci.integrations import patch
from tests.support.original_models import (
    boltz_layer,
    boltz_outer_product_mean,
    evoformer_block,
    openfold3_block,
    original,
    protenix_block,
)
from tests.support.patched_model import BIG, WideTorch, check_accuracy, check_autocast_dtypes, randomize

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
N, ROWS = 17, 5
Leaf = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


S, Z, M = normal(1, N, 24), normal(1, N, N, 32, seed=1), normal(1, ROWS, N, 24, seed=2)
MASK = torch.ones(1, N)
MASK[:, -3:] = 0
PAIR_MASK = MASK[:, :, None] * MASK[:, None]
MSA_MASK = (torch.rand(1, ROWS, N, generator=torch.Generator().manual_seed(3)) > 0.2).float() * MASK[:, None]


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    """The model in fp64 throughout: a mask value for fp64, and no casts to fp32."""
    for module in model.modules():
        if hasattr(module, "inf"):
            module.inf = BIG
    with contextlib.ExitStack() as stack:
        for name in ("protenix.model.modules.primitives", "protenix.model.modules.transformer"):
            if name in sys.modules:
                stack.enter_context(mock.patch.object(sys.modules[name], "torch", WideTorch()))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


def openfold(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    m, z = leaf(M), leaf(Z)
    return list(model(m, z, MSA_MASK.to(z.dtype), PAIR_MASK.to(z.dtype), **options))


def openfold3(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S), leaf(Z)
    return list(model(s=s, z=z, single_mask=MASK.to(z.dtype), pair_mask=PAIR_MASK.to(z.dtype), **options))


def boltz(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S), leaf(Z)
    return list(model(s, z, MASK.to(z.dtype), PAIR_MASK.to(z.dtype), **options))


def boltz_msa(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    m = leaf(M)
    return [model(m, MSA_MASK.to(m.dtype), **options)]


def protenix(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S[0]), leaf(Z[0])
    own = {"triangle_multiplicative": "torch", "triangle_attention": "torch", "inplace_safe": False}
    return list(model(s, z, PAIR_MASK[0].to(z.dtype), **own | options))


MODELS = {
    "OpenFold": (evoformer_block, openfold, {"chunk_size": 4}, 9),
    "OpenFold fused": (lambda: evoformer_block(fuse_projection_weights=True), openfold, {"chunk_size": 4}, 9),
    "OpenFold3": (openfold3_block, openfold3, {"chunk_size": 4}, 6),
    "OpenFold3 fused": (lambda: openfold3_block(fuse_projection_weights=True), openfold3, {"chunk_size": 4}, 6),
    "Boltz": (boltz_layer, boltz, {"chunk_size_tri_attn": 128}, 6),
    "Boltz MSA": (boltz_outer_product_mean, boltz_msa, {"chunk_size": 4}, 1),
    "Protenix": (protenix_block, protenix, {"chunk_size": 4}, 6),
}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name in ("p", "p_drop", "dropout"):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODELS)
def test_block_error_against_fp64(name: str, training: bool, autocast: torch.dtype | None) -> None:
    """In training with the model's dropout (OpenFold's multiplies in place), in inference with chunks.

    Under autocast without dropout: with it, single values where a ReLU changes its sign dominate the error of both
    models.
    """
    make, call, chunks, _ = MODELS[name]
    options = {} if training else chunks
    model = make().train(training)
    check_accuracy(
        without_dropout(model) if autocast else model, lambda model, leaf: call(model, leaf, **options), widen=widen,
        autocast=autocast, draws=8,
    )  # fmt: skip


def test_openfold_trains_under_autocast_with_dropout() -> None:
    model = randomize(evoformer_block()).train()
    patch(model, verbose=False)
    m, z = (x.detach().clone().requires_grad_() for x in (M, Z))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(m * 1, z * 1, MSA_MASK, PAIR_MASK)
    sum(x.float().square().sum() for x in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [m, z, *model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_every_patched_module_runs_on_the_kernels(name: str) -> None:
    make, call, chunks, count = MODELS[name]
    model = randomize(make()).train()
    report = patch(model, verbose=False)
    assert not report.skipped
    assert len(report.modules) == count
    call(model, lambda x: x.clone())
    model.eval()
    with torch.no_grad():
        call(model, lambda x: x.clone(), **chunks)
    assert all((calls.on_kernels, calls.fallbacks.total()) == (2, 0) for _, calls in report.modules.values()), report


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Protenix", {"triangle_multiplicative": "cuequivariance", "triangle_attention": "cuequivariance"}),
        ("Protenix", {"triangle_attention": "triattention"}),
        ("OpenFold3", {"use_cueq_triangle_kernels": True}),
        ("Boltz", {"use_kernels": True}),
    ],
)
def test_kernel_options_of_the_models_run_on_the_kernels(name: str, options: dict[str, Any]) -> None:
    """Calls that select GPU-only kernels give the same results as the model's torch code."""
    make, call, _, _ = MODELS[name]
    model = randomize(make()).eval()
    with torch.no_grad():
        want = call(model, lambda x: x.clone())
        report = patch(model, verbose=False)
        if name == "OpenFold3":  # its attention with single representation uses them too
            report = patch(model.pair_stack, verbose=False)
            model.pair_stack(Z.clone(), PAIR_MASK, **options)
        else:
            for got, expected in zip(call(model, lambda x: x.clone(), **options), want, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    triangles = [calls for kind, calls in report.modules.values() if kind.startswith("Triang")]
    assert len(triangles) == 4
    assert all((calls.on_kernels, calls.fallbacks.total()) == (1, 0) for calls in triangles), report


def test_openfold_with_fp32_weights_and_bf16_activations() -> None:
    """OpenFold casts its weights to bf16 for bf16 activations, also outside autocast."""

    def call(model: nn.Module, leaf: Leaf) -> list[Tensor]:
        m, z = leaf(M.bfloat16()), leaf(Z.bfloat16())
        return list(model(m, z, MSA_MASK.to(z.dtype), PAIR_MASK.to(z.dtype)))

    check_accuracy(evoformer_block().train(), call, widen=widen, dtype=torch.bfloat16, draws=8)


def test_openfold_fp32_masks_with_bf16_activations() -> None:
    """Products with an fp32 mask are fp32 in both versions."""
    model = randomize(evoformer_block()).eval()
    m, z = M.bfloat16(), Z.bfloat16()
    with torch.no_grad():
        want = model(m, z, MSA_MASK, PAIR_MASK)
        report = patch(model, verbose=False)
        got = model(m, z, MSA_MASK, PAIR_MASK)
    assert [x.dtype for x in got] == [x.dtype for x in want]
    assert all((calls.on_kernels, calls.fallbacks.total()) == (1, 0) for _, calls in report.modules.values()), report
    for one, other in zip(got, want, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


def test_openfold_in_place_inference() -> None:
    model = randomize(evoformer_block()).eval()
    with torch.no_grad():
        want = model(M.clone(), Z.clone(), MSA_MASK, PAIR_MASK, inplace_safe=True, chunk_size=4)
        report = patch(model, verbose=False)
        got = model(M.clone(), Z.clone(), MSA_MASK, PAIR_MASK, inplace_safe=True, chunk_size=4)
    assert all((calls.on_kernels, calls.fallbacks.total()) == (1, 0) for _, calls in report.modules.values()), report
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_dtypes_under_autocast(name: str) -> None:
    assert check_autocast_dtypes(MODELS[name][0]())


def test_unrecognized_modules_are_listed() -> None:
    block = original("openfold.model.evoformer").ExtraMSABlock(
        c_m=24, c_z=32, c_hidden_msa_att=8, c_hidden_opm=6, c_hidden_mul=16, c_hidden_pair_att=8, no_heads_msa=3,
        no_heads_pair=4, transition_n=2, msa_dropout=0.15, pair_dropout=0.25, opm_first=False,
        fuse_projection_weights=False, inf=1e9, eps=1e-8, ckpt=False,
    )  # fmt: skip
    report = patch(block, verbose=False)
    assert report.unrecognized == {"MSAColumnGlobalAttention": 1}
    assert "skipped: 1 MSAColumnGlobalAttention: not a supported module type" in str(report)


def test_openfold_stack_trains_with_checkpoints_and_dropout() -> None:
    """Blocks recomputed in the backward pass use the same dropout, multiplied in place."""
    stack = original("openfold.model.evoformer").EvoformerStack(
        c_m=24, c_z=32, c_hidden_msa_att=8, c_hidden_opm=6, c_hidden_mul=16, c_hidden_pair_att=8, c_s=20,
        no_heads_msa=3, no_heads_pair=4, no_blocks=2, transition_n=2, msa_dropout=0.15, pair_dropout=0.25,
        no_column_attention=False, opm_first=False, fuse_projection_weights=False, blocks_per_ckpt=1, inf=1e9, eps=1e-8,
    )  # fmt: skip

    def call(model: nn.Module, leaf: Leaf) -> list[Tensor]:
        m, z = leaf(M), leaf(Z)
        return list(model(m, z, MSA_MASK.to(z.dtype), PAIR_MASK.to(z.dtype), chunk_size=None))

    check_accuracy(stack.train(), call, widen=widen, draws=8)
