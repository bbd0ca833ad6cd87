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
    boltz1_layer,
    boltz_layer,
    boltz_msa_layer,
    boltz_outer_product_mean,
    evoformer_block,
    extra_msa_block,
    openfold3_block,
    original,
    protenix_block,
    protenix_msa_block,
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


def extra_msa(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    """With OpenFold's low-memory attention: its row attention otherwise requires a CUDA extension."""
    return openfold(model, leaf, use_lma=True, **options)


def openfold3(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S), leaf(Z)
    return list(model(s=s, z=z, single_mask=MASK.to(z.dtype), pair_mask=PAIR_MASK.to(z.dtype), **options))


def boltz(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S), leaf(Z)
    return list(model(s, z, MASK.to(z.dtype), PAIR_MASK.to(z.dtype), **options))


def boltz_msa(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    m = leaf(M)
    return [model(m, MSA_MASK.to(m.dtype), **options)]


def boltz_msa_layers(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    m, z = leaf(M), leaf(Z)
    return list(model(z, m, PAIR_MASK.to(z.dtype), MSA_MASK.to(z.dtype), **options))


def protenix_msa(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    m, z = leaf(M[0]), leaf(Z[0])
    own = {"triangle_multiplicative": "torch", "triangle_attention": "torch", "inplace_safe": False}
    return list(model(m, z, PAIR_MASK[0].to(z.dtype), **own | options))


def protenix(model: nn.Module, leaf: Leaf, **options: Any) -> list[Tensor]:
    s, z = leaf(S[0]), leaf(Z[0])
    own = {"triangle_multiplicative": "torch", "triangle_attention": "torch", "inplace_safe": False}
    return list(model(s, z, PAIR_MASK[0].to(z.dtype), **own | options))


BOLTZ_MSA_CHUNKS = {
    "chunk_heads_pwa": True, "chunk_size_transition_z": 16, "chunk_size_transition_msa": 8,
    "chunk_size_outer_product": 4, "chunk_size_tri_attn": 128,
}  # fmt: skip
MODELS = {
    "OpenFold": (evoformer_block, openfold, {"chunk_size": 4}, 9),
    "OpenFold fused": (lambda: evoformer_block(fuse_projection_weights=True), openfold, {"chunk_size": 4}, 9),
    "OpenFold extra MSA": (extra_msa_block, extra_msa, {"chunk_size": 4}, 9),
    "OpenFold3": (openfold3_block, openfold3, {"chunk_size": 4}, 7),
    "OpenFold3 fused": (lambda: openfold3_block(fuse_projection_weights=True), openfold3, {"chunk_size": 4}, 7),
    "Boltz-1": (boltz1_layer, boltz, {"chunk_size_tri_attn": 128}, 7),
    "Boltz-2": (boltz_layer, boltz, {"chunk_size_tri_attn": 128}, 7),
    "Boltz-1 MSA": (lambda: boltz_msa_layer(1), boltz_msa_layers, BOLTZ_MSA_CHUNKS, 8),
    "Boltz-2 MSA": (lambda: boltz_msa_layer(2), boltz_msa_layers, BOLTZ_MSA_CHUNKS, 8),
    "Boltz outer product mean": (boltz_outer_product_mean, boltz_msa, {"chunk_size": 4}, 1),
    "Protenix": (protenix_block, protenix, {"chunk_size": 4}, 7),
    "Protenix MSA": (protenix_msa_block, protenix_msa, {"chunk_size": 4}, 8),
}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name in ("p", "p_drop", "dropout"):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
    return model


NOT_COMPARED = {("Protenix MSA", False), ("OpenFold extra MSA", True)}
"""Protenix' MSA block writes into its input in inference, so that it has no gradients there. With low-memory attention
OpenFold's own fp32 gradients are more exact (a ratio of 3.4 was seen); its modules are compared one by one in training.
"""


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in MODELS for training in (True, False) if (name, training) not in NOT_COMPARED],
)
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
    # Protenix runs its MSA modules on several chunks of the rows
    assert all(calls.on_kernels >= 2 and not calls.fallbacks for _, calls in report.modules.values()), report


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Protenix", {"triangle_multiplicative": "cuequivariance", "triangle_attention": "cuequivariance"}),
        ("Protenix", {"triangle_attention": "triattention"}),
        ("OpenFold3", {"use_cueq_triangle_kernels": True}),
        ("Boltz-2", {"use_kernels": True}),
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


@pytest.mark.parametrize("name", ["OpenFold", "OpenFold fused", "OpenFold extra MSA", "Protenix", "Protenix MSA"])
def test_in_place_inference(name: str) -> None:
    make, call, chunks, _ = MODELS[name]
    model = randomize(make()).eval()
    with torch.no_grad():
        want = call(model, lambda x: x.clone(), inplace_safe=True, **chunks)
        report = patch(model, verbose=False)
        got = call(model, lambda x: x.clone(), inplace_safe=True, **chunks)
    assert all(calls.on_kernels > 0 and not calls.fallbacks for _, calls in report.modules.values()), report
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", MODELS)
def test_dtypes_under_autocast(name: str, training: bool) -> None:
    assert check_autocast_dtypes(MODELS[name][0]().train(training))


def test_unrecognized_modules_are_listed() -> None:
    layers = original("openfold3.core.model.layers.attention_pair_bias")
    crossed = layers.CrossAttentionPairBias(24, 24, 24, 24, 32, 8, 3, use_ada_layer_norm=True)
    report = patch(nn.ModuleList([crossed, openfold3_block()]), verbose=False)
    assert report.unrecognized == {"CrossAttentionPairBias": 1}
    assert "skipped: 1 CrossAttentionPairBias: not a supported module type" in str(report)


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
