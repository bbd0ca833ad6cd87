"""Drop-in functions against their formulas, including gradients of both biases."""

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
def test_deepspeed_function_against_formula(which: tuple[int, ...]) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 17, 17, 4, 32), (1, 9, 33, 4, 32)])
def test_case_of_deepspeeds_test_suite(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """tests/unit/ops/deepspeed4science of DeepSpeed: a mask of -1e9 (-inf in fp16), gradients of Q, K, V and bias 2.

    The reference is plain attention in fp32; the tolerance is 2 % of the largest value, as in DeepSpeed.
    """
    b, s, n, h, d = shape
    given = [normal(*shape, seed=i).detach().to(dtype).requires_grad_() for i in range(3)]
    mask = torch.randint(0, 2, (b, s, 1, 1, n), generator=torch.Generator().manual_seed(5))
    mask[..., 0] = 1  # DeepSpeed returns NaN for a row without keys
    bias = normal(b, 1, h, n, n, seed=6).detach().to(dtype).requires_grad_()
    mask_bias = (1e9 * (mask - 1)).to(dtype)
    weight = normal(*shape, seed=7).detach().to(dtype)
    out = DS4Sci_EvoformerAttention(*given, [mask_bias, bias])
    out.backward(weight)
    wide = [x.detach().float().requires_grad_() for x in (*given, bias)]
    q, k, v = (x.transpose(2, 3) for x in wide[:3])
    want = plain(q * d**-0.5, k, v, [mask_bias.float(), wide[3]]).transpose(2, 3)
    want.backward(weight.float())
    assert out.dtype == dtype
    assert (out - want).abs().max() < 2e-2 * want.abs().max()
    for got, expected in zip((*given, bias), wide, strict=True):
        assert (got.grad - expected.grad).abs().max() < 2e-2 * expected.grad.abs().max()


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 2)])
def test_leading_axes_without_biases(lead: tuple[int, ...]) -> None:
    q, k, v = (normal(*lead, 7, 2, 8, seed=i) for i in range(3))
    got = DS4Sci_EvoformerAttention(q, k, v, [])
    same(got, plain(*(x.transpose(-2, -3) for x in (q * 8**-0.5, k, v)), []).transpose(-2, -3), [q, k, v])
    with pytest.raises(ValueError, match=r"Q must be \[b, s, n, h, d\] if there are biases"):
        DS4Sci_EvoformerAttention(q, k, v, [normal(1)])


def test_wrong_bias_shapes_raise() -> None:
    q = normal(1, 2, 5, 2, 8)
    with pytest.raises(ValueError, match=r"biases\[0\] must be \(1, 2, 1, 1, 5\)"):
        DS4Sci_EvoformerAttention(q, q, q, [normal(1, 2, 5)])
    with pytest.raises(ValueError, match=r"biases\[1\] must be \(1, 1, 2, 5, 5\)"):
        DS4Sci_EvoformerAttention(q, q, q, [None, normal(1, 2, 2, 5, 5)])
    with pytest.raises(ValueError, match="at most two"):
        DS4Sci_EvoformerAttention(q, q, q, [None, None, None])


@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("kinds", [[], ["mask"], ["pair"], ["mask", "pair"], ["full"], ["mask", "mask"]])
def test_openfold_function_against_formula(lead: tuple[int, ...], kinds: list[str]) -> None:
    h, n, keys, d = 2, 6, 7, 8
    q, k, v = normal(*lead, h, n, d), normal(*lead, h, keys, d, seed=1), normal(*lead, h, keys, d, seed=2)
    shapes = {"mask": (*lead, 1, 1, keys), "pair": (*lead[:-1], 1, h, n, keys), "full": (*lead, h, n, keys)}
    biases = [normal(*shapes[kind], seed=3 + i) for i, kind in enumerate(kinds)]
    same(attention(q, k, v, biases), plain(q, k, v, biases), [q, k, v, *biases])
