"""Attention in checkpointed layers: gradients overwrite only the copies that the attention function makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ds4sci.kernels import native
from ds4sci.kernels.varlen_attention import native as native_attention
from ds4sci.models.huggingface import attention
from ds4sci.models.huggingface.attention import Layout, checkpoint_layer, packed_attention, use_layout
from ds4sci.parallel.groups import SequenceGroup

pytestmark = pytest.mark.skipif(native.why_not("varlen_attention") is not None, reason="needs a C++ compiler")
LAYOUT = Layout(torch.tensor([[0, 9], [9, 20]]), SequenceGroup())


def layer(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Attention whose v is also saved by ``tanh``, and read by the layer after attention."""
    q, k, v = ((x @ w).view(1, 20, 2, 8).transpose(1, 2) for w in weights)
    v = torch.tanh(v)
    out, _ = packed_attention(SimpleNamespace(is_causal=False), q, k, v)  # type: ignore[arg-type]
    return out * v.transpose(1, 2).square() + out * q.transpose(1, 2).exp()


def gradients(run: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 20, 16, generator=generator).requires_grad_()]
    leaves += [torch.randn(16, 16, generator=generator).mul(0.3).requires_grad_() for _ in range(3)]
    with use_layout(LAYOUT):
        out = run(leaves[0], leaves[1:])
    return list(torch.autograd.grad(out.square().sum(), leaves))


def test_a_layer_that_reads_its_values_elsewhere_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    donated: list[bool] = []
    attend = attention.varlen_attention
    monkeypatch.setattr(
        attention,
        "varlen_attention",
        lambda *args, **kwargs: donated.append(kwargs["donated"]) or attend(*args, **kwargs),
    )
    expected = gradients(layer)
    assert donated == [False]
    for one, other in zip(gradients(lambda *given: checkpoint_layer(layer, *given)), expected, strict=True):
        assert torch.equal(one, other)
    assert donated == [False, True, True]  # the forward pass and its recomputation


def test_gradients_overwrite_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    overwritten: list[bool] = []
    donated_backward = native_attention._gradients

    def spy(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> list[Tensor]:
        grads = donated_backward(grad, q, k, v, *others)
        overwritten.extend(g.data_ptr() == x.data_ptr() for g, x in zip(grads, (q, k, v), strict=False))
        return grads

    pair = native_attention.ForwardBackward(LAYOUT.doc_spans, False, 0.3)
    monkeypatch.setattr(native_attention, "_gradients", spy)
    q, k, v = (torch.randn(1, 20, 2, 8) for _ in range(3))
    out, *saved = pair.forward(q, k, v)
    for donated in (False, True):
        pair.backward(torch.ones_like(out), q, k, v, out, *saved, [True] * 3, donated)
    assert overwritten == [False] * 3 + [True] * 3
