"""Evoformer attention on a GPU: ``pytest -m gpu``. The contract tests run on a GPU too.

For long lengths the oracle is the tiled implementation in fp64, which fits in memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds4sci.kernels import evoformer_attention
from ds4sci.kernels.evoformer_attention import KERNEL
from ds4sci.kernels.evoformer_attention import triton as host

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def example(
    dtype: torch.dtype = torch.float32, *, b: int = 1, s: int = 4, n: int = 70, h: int = 4, d: int = 32
) -> dict:
    given: dict[str, Any] = {
        x: normal(b, s, n, h, d, seed=i, dtype=dtype) for i, x in enumerate(("q", "k", "v", "gate"))
    }
    given["pair_bias"] = normal(b, h, n, n, dtype=dtype)
    given["mask"] = normal(b, s, n, seed=9) > -1
    reason = KERNEL.get_implementation("triton").why_not(**given)
    assert reason is None, f"refused on a GPU: {reason}"
    return given


def outcome(run: Any, given: dict[str, Any]) -> list[torch.Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    out = run(**(given | leaves))
    weight = normal(*out.shape, seed=5).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weight)]


def by_triton(**given: Any) -> torch.Tensor:
    return evoformer_attention(**given, implementation="triton")


def widened(given: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if x.is_floating_point() else x for name, x in given.items()}


def assert_accurate(got: list[torch.Tensor], plain: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """The error is at most 3 times that of plain torch, as in ``KernelContract``."""
    for one, other, oracle in zip(got, plain, want, strict=True):
        eps = torch.finfo(one.dtype).eps
        assert one.isfinite().all()
        error, honest = ((x.double() - oracle).norm() for x in (one, other))
        assert error <= 3 * max(honest, 0.3 * eps * oracle.norm()), (error, honest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 17, 63, 64, 191, 384])
@pytest.mark.parametrize("d", [8, 32, 64, 96, 128])
def test_accuracy(dtype: torch.dtype, n: int, d: int) -> None:
    """All widths and length ranges of the shipped configs; exact products for fp32."""
    given = example(dtype, s=5, n=n, d=d)
    assert_accurate(
        outcome(by_triton, given), outcome(KERNEL.reference, given), outcome(KERNEL.reference, widened(given))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("n", [2048, 4096])
def test_long_sequences(dtype: torch.dtype, n: int) -> None:
    """``tiled`` in fp64 is the oracle."""
    given = example(dtype, s=3, n=n, h=2)
    tiled = KERNEL.get_implementation("tiled").run
    assert_accurate(outcome(by_triton, given), outcome(KERNEL.reference, given), outcome(tiled, widened(given)))


def test_tf32_setting_is_respected() -> None:
    given = example(n=256)
    exact = outcome(by_triton, given)
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        fast = outcome(by_triton, given)
        plain = outcome(KERNEL.reference, given)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert_accurate(fast, plain, outcome(KERNEL.reference, widened(given)))
    if torch.version.hip is None:
        assert not torch.equal(exact[0], fast[0])


def test_more_than_2_31_elements() -> None:
    """b·s·n·h·d = 2.2·10⁹ for each of q, k, v: the last rows equal those of a call with only these rows."""
    s, n, h, d = 16500, 512, 8, 32
    free, _ = torch.cuda.mem_get_info()
    if free < 9 * s * n * h * d * 2:
        pytest.skip(f"needs {9 * s * n * h * d * 2 / 2**30:.0f} GiB of free GPU memory, available {free / 2**30:.0f}")
    given = {x: torch.randn(1, s, n, h, d, device="cuda", dtype=torch.bfloat16) for x in ("q", "k", "v")}
    given["pair_bias"] = normal(1, h, n, n, dtype=torch.bfloat16)
    whole = {name: x.requires_grad_() for name, x in given.items()}
    out = by_triton(**whole)
    grads = torch.autograd.grad(out, [whole[x] for x in ("q", "k", "v")], out.detach())
    last = {x: given[x][:, -4:].detach().requires_grad_() for x in ("q", "k", "v")}
    separate = by_triton(**last, pair_bias=given["pair_bias"].detach())
    assert torch.equal(out[:, -4:], separate)
    for one, other in zip(grads, torch.autograd.grad(separate, list(last.values()), separate.detach()), strict=True):
        assert torch.equal(one[:, -4:], other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_reproducible(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen times, with concurrent work, in one launch and in many."""
    for scratch in (host.SCRATCH_BYTES, 0):
        monkeypatch.setattr(host, "SCRATCH_BYTES", scratch)
        given = example(dtype, s=37, n=200)
        first = outcome(by_triton, given)
        for _ in range(16):
            with torch.cuda.stream(torch.cuda.Stream()):
                normal(512, 512) @ normal(512, 512)
            for one, other in zip(first, outcome(by_triton, given), strict=True):
                assert torch.equal(one, other)


def test_non_default_stream() -> None:
    given = example(torch.bfloat16, s=64, n=256)
    want = outcome(by_triton, given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)  # earlier work, so that a launch on another stream would read too early
        moved = {name: x.clone() for name, x in given.items()}
        got = outcome(by_triton, moved)
    stream.synchronize()
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_device_other_than_the_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    given = example()
    there = {name: x.to("cuda:1") for name, x in given.items()}
    assert torch.cuda.current_device() == 0
    assert torch.equal(by_triton(**there).cpu(), by_triton(**given).cpu())


def test_compiles_without_graph_breaks() -> None:
    given = example(torch.bfloat16)
    compiled = torch.compile(lambda **x: by_triton(**x).square(), fullgraph=True)
    for one, other in zip(outcome(compiled, given), outcome(lambda **x: by_triton(**x).square(), given), strict=True):
        torch.testing.assert_close(one, other)


def test_triton_is_the_default() -> None:
    given = example()
    assert torch.equal(evoformer_attention(**given), by_triton(**given))


def test_opcheck() -> None:
    given = example(n=10, d=8)
    q, k, v, gate, bias = (given[x].requires_grad_() for x in ("q", "k", "v", "gate", "pair_bias"))
    torch.library.opcheck(
        torch.ops.ds4sci.evoformer_attention.default, (q, k, v, given["mask"], bias, gate, 0.3, "triton")
    )


def test_memory_is_bounded() -> None:
    """Nothing of size s·h·n²: outputs, lse, and in backward three numbers per query and the partial sums."""
    given = example(torch.bfloat16, s=256, n=512)
    leaves = {name: x.requires_grad_() for name, x in given.items() if x.is_floating_point()}
    out = by_triton(**given)  # compiles
    torch.autograd.grad(out.sum(), list(leaves.values()))
    del out
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = by_triton(**given)
    torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    q, lines = given["q"].nbytes, 256 * 4 * 512 * 4
    bound = 7 * q + 5 * lines + max(host.SCRATCH_BYTES, q // 2) + 3 * 4 * 512 * 512 * 4
    assert torch.cuda.max_memory_allocated() - before <= bound * 1.05
