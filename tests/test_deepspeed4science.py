"""The drop-in functions against their formulas, gradients of both biases included."""

from __future__ import annotations

import pytest
import torch

from ds4sci.integrations.deepspeed4science import DS4Sci_EvoformerAttention, attention


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, biases: list[torch.Tensor]) -> torch.Tensor:
    scores = query @ key.transpose(-1, -2)
    for bias in biases:
        scores = scores + bias
    return scores.softmax(-1) @ value


def same(got: torch.Tensor, want: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(got, want)
    weight = normal(*want.shape, seed=7).detach()
    for one, other in zip(*(torch.autograd.grad(x, leaves, weight) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [(), (0,), (1,), (0, 1)])
def test_upstreams_function(which: tuple[int, ...]) -> None:
    b, s, n, h, d = 2, 3, 9, 4, 8
    q, k, v = (normal(b, s, n, h, d, seed=i) for i in range(3))
    all_biases = [normal(b, s, 1, 1, n, seed=3), normal(b, 1, h, n, n, seed=4)]
    used = [all_biases[i] for i in which]
    given: list[torch.Tensor | None] = [all_biases[0] if 0 in which else None]
    given += [all_biases[1]] if 1 in which else []
    length = len(given)
    got = DS4Sci_EvoformerAttention(q, k, v, given)
    assert len(given) == length, "the caller's list was changed"
    heads_first = [x.transpose(2, 3) for x in (q * d**-0.5, k, v)]
    same(got, plain(*heads_first, used).transpose(2, 3), [q, k, v, *used])


def test_wrong_biases_are_named() -> None:
    q = normal(1, 2, 5, 2, 8)
    with pytest.raises(ValueError, match=r"biases\[0\] must be \(1, 2, 1, 1, 5\)"):
        DS4Sci_EvoformerAttention(q, q, q, [normal(1, 2, 5)])
    with pytest.raises(ValueError, match=r"biases\[1\] must be \(1, 1, 2, 5, 5\)"):
        DS4Sci_EvoformerAttention(q, q, q, [None, normal(1, 2, 2, 5, 5)])
    with pytest.raises(ValueError, match="at most two"):
        DS4Sci_EvoformerAttention(q, q, q, [None, None, None])


@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("kinds", [[], ["mask"], ["pair"], ["mask", "pair"], ["full"], ["mask", "mask"]])
def test_openfolds_function(lead: tuple[int, ...], kinds: list[str]) -> None:
    h, n, keys, d = 2, 6, 7, 8
    q, k, v = normal(*lead, h, n, d), normal(*lead, h, keys, d, seed=1), normal(*lead, h, keys, d, seed=2)
    shapes = {"mask": (*lead, 1, 1, keys), "pair": (*lead[:-1], 1, h, n, keys), "full": (*lead, h, n, keys)}
    biases = [normal(*shapes[kind], seed=3 + i) for i, kind in enumerate(kinds)]
    same(attention(q, k, v, biases), plain(q, k, v, biases), [q, k, v, *biases])
