"""Layers' inputs that wait in host memory: which tensors move, and that gradients do not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds4sci.nn import offload
from tests.support import language_oracle as oracle

SIZES = {"masked_lm": oracle.ESM, "causal_lm": oracle.LLAMA}


def step(kind: str, device: str = "cpu", **more: object) -> dict[str, Tensor]:
    model = oracle.model(kind, SIZES[kind], checkpoint_min_tokens=0, tile_size=16, **more).train().to(device)
    out = model(oracle.batch(kind, [[17, 9, 30]], 64).to(torch.device(device)))
    ((out.losses * out.weights).sum() / out.weights.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", SIZES)
def test_only_the_inputs_of_layers_move(kind, monkeypatch) -> None:
    """A tensor on the CPU stays where it is; here it is copied, as one on a GPU would be."""
    moved: list[Tensor] = []

    def copied(x: Tensor) -> offload.Moved:
        moved.append(x)
        return x.device, x.detach().clone()

    stays = step(kind, offload=True)
    monkeypatch.setattr(offload, "to_host", copied)
    goes = step(kind, offload=True)
    width = SIZES[kind]["hidden_size"]
    assert [tuple(x.shape) for x in moved] == [(1, 64, width)] * SIZES[kind]["num_hidden_layers"]
    assert set(goes) == set(stays)
    for name, grad in goes.items():
        assert torch.equal(grad, stays[name]), name


def test_off_unless_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(offload, "to_host", lambda x: pytest.fail("a tensor was moved"))
    step("causal_lm")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SIZES)
def test_on_a_gpu_gradients_are_the_same(kind) -> None:
    stays, goes = (step(kind, "cuda", offload=asked) for asked in (False, True))
    assert set(goes) == set(stays)
    for name, grad in goes.items():
        assert torch.equal(grad, stays[name]), name


@pytest.mark.gpu
def test_there_and_back() -> None:
    x = torch.randn(1000, 33, device="cuda", dtype=torch.bfloat16)
    kept = offload.to_host(x)
    assert not isinstance(kept, Tensor)
    assert kept[1].is_pinned()
    assert torch.equal(offload.from_host(kept), x)
