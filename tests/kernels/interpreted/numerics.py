"""Numerical results of the Triton kernels on the interpreter: several tiles, tails, row groups and launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels import evoformer_attention_lse
from ds4sci.kernels.evoformer_attention import KERNEL, LSE_KERNEL, triton
from ds4sci.kernels.evoformer_attention.triton_configs import Config
from ds4sci.kernels.spec import Implementation

TRITON = KERNEL.get_implementation("triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def example(dtype: torch.dtype, *, b: int = 1, s: int = 5, n: int = 37, keys: int = 45, d: int = 12) -> dict[str, Any]:
    h = 2
    given: dict[str, Any] = {x: normal(b, s, n, h, d, seed=i, dtype=dtype) for i, x in enumerate(("q", "gate"), 3)}
    given |= {name: normal(b, s, keys, h, d, seed=i, dtype=dtype) for i, name in enumerate(("k", "v"), 1)}
    given["pair_bias"] = normal(b, h, n, keys, dtype=dtype)
    given["mask"] = torch.rand(b, s, keys, generator=torch.Generator().manual_seed(0)) > 0.3
    given["mask"][:, 1] = False
    return given


def outcome(run: Any, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    leaves = {n: x.detach().requires_grad_() for n, x in given.items() if x.is_floating_point()}
    out = run(**(given | leaves))
    out, *lse = out if isinstance(out, tuple) else (out,)
    loss = (out.double() * normal(*out.shape, seed=7, dtype=torch.float64)).sum()
    for x in lse:
        loss = loss + (x.double() * normal(*x.shape, seed=8, dtype=torch.float64)).masked_fill(x == -torch.inf, 0).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {"out": out, **{f"lse {i}": x for i, x in enumerate(lse)}}
    found |= {f"grad {n}": x for n, x in zip(leaves, grads, strict=True)}
    return {name: x.detach().double() for name, x in found.items()}


def compare(given: dict[str, Any], kernel: Any = KERNEL) -> None:
    """The error against fp64 is at most 3 times that of plain torch in the same dtype, as in ``KernelContract``."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    want, plain = outcome(kernel.reference, wide), outcome(kernel.reference, given)
    got = outcome(kernel.get_implementation("triton").run, given)
    eps = torch.finfo(given["q"].dtype).eps
    scale = max(x.nan_to_num(neginf=0).norm() for x in want.values())
    for name, expected in want.items():
        there = expected != -torch.inf
        assert torch.equal(got[name] == -torch.inf, ~there), name
        assert got[name][there].isfinite().all(), name
        errors = [(x[name] - expected)[there].norm() for x in (got, plain)]
        assert errors[0] <= 3 * max(errors[1], 0.3 * eps * (expected[there].norm() or scale)), f"{name}: {errors}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_inputs(dtype: torch.dtype) -> None:
    compare(example(dtype))


def test_batches_with_separate_or_shared_bias() -> None:
    given = example(torch.float32, b=2, s=3, n=20, keys=33)
    compare(given)
    compare(given | {"pair_bias": given["pair_bias"][:1]})


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("scratch", [0, 2**28])
def test_rows_that_share_a_bias(rows: int, scratch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 rows in groups of 1 to 4; the bias gradient in one launch per group, or in a single launch."""
    monkeypatch.setattr(triton.triton_configs, "choose", lambda *args: Config(min(rows, args[-1]), 16, 32, 4, 1))
    monkeypatch.setattr(triton, "SCRATCH_BYTES", scratch)
    monkeypatch.setattr(triton, "MAX_PROGRAMS", 2**20)
    launched = []
    run = triton.run
    monkeypatch.setattr(triton, "run", lambda launches, device: run(launched.extend(launches) or launches, device))
    compare(example(torch.float32, s=7, n=17, keys=35, d=8))
    batches = -(-7 // rows)
    assert sum(x.kernel == "grad_queries" for x in launched) == (1 if scratch else batches)


def test_strides() -> None:
    """Transposed views, strided channels, stride 0, an unaligned slice, a transposed bias."""
    q = normal(1, 33, 4, 2, 8).transpose(1, 2)
    k = normal(1, 4, 35, 8, 2).transpose(3, 4)
    v = normal(1, 1, 35, 2, 8, seed=1).expand(1, 4, 35, 2, 8)
    gate = normal(1, 4, 34, 2, 9)[:, :, 1:, :, 1:]
    bias = normal(1, 2, 35, 33).transpose(2, 3)
    mask = (torch.rand(4, 70, generator=torch.Generator().manual_seed(0)) > 0.3)[None, :, ::2]
    given = {"q": q, "k": k, "v": v, "gate": gate, "pair_bias": bias, "mask": mask}
    assert not any(x.is_contiguous() for x in given.values())
    dense = outcome(TRITON.run, {name: x.contiguous() for name, x in given.items()})
    for name, x in outcome(TRITON.run, given).items():
        assert torch.equal(x, dense[name]), name


def test_a_broadcast_output_gradient() -> None:
    """The gradient of ``out.sum()`` has strides of 0."""
    given = example(torch.float32, n=9, keys=9)
    q = given["q"].requires_grad_()
    got = torch.autograd.grad(TRITON.run(**given).sum(), q)[0]
    torch.testing.assert_close(got, torch.autograd.grad(KERNEL.reference(**given).sum(), q)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lse_and_its_gradient(dtype: torch.dtype) -> None:
    given = example(dtype)
    del given["gate"]
    compare(given, LSE_KERNEL)
    lse = evoformer_attention_lse(**given, implementation="triton")[1].requires_grad_(False)
    assert lse.dtype == torch.float32


def test_a_float_mask_with_a_gradient() -> None:
    given = example(torch.float32, s=3)
    given["mask"] = normal(1, 3, 45)
    given["mask"][0, 1, :7] = -torch.inf
    compare(given)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
def test_a_bias_in_its_own_dtype(kind: torch.dtype) -> None:
    given = example(torch.float16, s=3, n=17)
    given["pair_bias"] = given["pair_bias"].to(kind)
    compare(given)


def test_separate_gradients() -> None:
    given = example(torch.float32, s=3, n=17, keys=33)
    given["mask"] = normal(1, 3, 33)
    everything = outcome(TRITON.run, given)
    for name in given:
        x = given[name].clone().requires_grad_()
        out = TRITON.run(**(given | {name: x}))
        weight = normal(*out.shape, seed=7, dtype=torch.float64)
        (grad,) = torch.autograd.grad((out.double() * weight).sum(), x)
        torch.testing.assert_close(grad.double(), everything[f"grad {name}"], rtol=0, atol=0)


def test_short_lengths() -> None:
    for n, keys in ((1, 40), (40, 2), (2, 3)):  # gradients over one key are 0: case "one residue" of the contract
        compare(example(torch.float32, s=2, n=n, keys=keys, d=8))


def test_a_softmax_that_would_overflow() -> None:
    given = example(torch.float32, s=2, n=20, keys=40)
    given["q"] = given["q"] * 100
    given["pair_bias"] = given["pair_bias"] * 100
    compare(given)


def test_every_output_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are filled with NaN first."""
    given = example(torch.float32)
    given["mask"][:, 0, 20:] = False  # rows 0 and 1 both mask the second tile of keys
    want = outcome(TRITON.run, given)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(triton.torch, "empty", poisoned)
    got = outcome(TRITON.run, given)
    monkeypatch.undo()
    for name, x in got.items():
        assert torch.equal(x, want[name]), name
    compare(given)


def test_refusals() -> None:
    q = normal(1, 2, 3, 1, 8)
    implementation: Implementation = TRITON
    assert implementation.why_not(q, q, q) is None
    assert "not float64" in str(implementation.why_not(q.double(), q, q))
    assert "up to 128 channels" in str(implementation.why_not(*(normal(1, 2, 3, 1, 129),) * 3))
