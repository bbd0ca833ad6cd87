"""Pointwise and dropout kernels on a GPU: ``pytest -m gpu``.

The contract tests run the operations that use these functions on a GPU too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ds4sci.kernels import KERNELS, shared_dropout
from ds4sci.kernels.pointwise import reference, triton, triton_plan
from tests.support.pointwise_calls import (
    CALLS,
    Call,
    Given,
    Outcome,
    assert_accurate,
    copied,
    numbers,
    spread,
    sums,
    widened,
)

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BY_NAME = {call.name: call for call in CALLS}
BACKWARD = [call for call in CALLS if "backward" in call.name]


def outcome(call: Call, given: Given) -> Outcome:
    tensor = next(iter(given.values()))
    reason = triton.why_not(tensor if tensor.dim() == 2 else tensor.unsqueeze(0))
    assert reason is None, f"refused on a GPU: {reason}"
    return call.run(triton, **given)


def compare(call: Call, given: Given) -> None:
    assert_accurate(outcome(call, given), call.run(reference, **given), call.run(reference, **widened(given)))


def same(one: Outcome, other: Outcome) -> None:
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_accuracy(call: Call, dtype: torch.dtype) -> None:
    """Shipped tiles, with more tiles than programs that compute sums."""
    for rows, c in ((1, 1), (17, 9), (191, 24), (63, 300), (1000, 128), (2**16 + 3, 32)):
        compare(call, call.make(rows, c, dtype, DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", [c for c in CALLS if "norm" in c.name], ids=lambda call: call.name)
def test_every_width_of_a_norm(call: Call, dtype: torch.dtype) -> None:
    limit = 1024 if "columns" in call.name else 8192
    for i in range(4, limit.bit_length()):
        for c in (2**i, 2**i - 1):
            compare(call, call.make(100, c, dtype, DEVICE))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_strides(call: Call) -> None:
    """The bits differ from dense tensors: with less alignment, threads add other elements in another order."""
    given = call.make(300, 21, torch.bfloat16, DEVICE)
    compare(call, {name: x if name in ("mean", "rstd") else spread(x) for name, x in given.items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 9, 32, 128, 200, 1024, 4096])
def test_the_gradient_of_a_norm_may_overwrite_the_output_gradient(c: int, dtype: torch.dtype) -> None:
    """Dense rows and rows in planes, with various numbers of elements per thread."""
    rows = numbers(40, 50, c, dtype=dtype, device=DEVICE)
    for x in (rows, rows.transpose(0, 1)):
        given = BY_NAME["norm_backward"].make(2000, c, dtype, DEVICE) | {"x": x}

        def call(grad: Tensor, out: Tensor, given: Given = given) -> tuple[Tensor, ...]:
            made = sums(out, c), sums(out, c)
            triton.norm_backward(grad, *(given[name] for name in ("x", "mean", "rstd", "weight")), out, made)
            return out.clone(), *made

        apart = call(given["grad"], torch.empty(x.shape, dtype=dtype, device=DEVICE))
        for _ in range(5):
            grad = given["grad"].clone()
            for one, other in zip(call(grad, grad.view(x.shape)), apart, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("call", BACKWARD, ids=lambda call: call.name)
def test_results_are_reproducible(call: Call) -> None:
    """Sixteen times, with concurrent work; in place, so that a read after another thread's write is detected."""
    given = call.make(2**15 + 5, 100, torch.bfloat16, DEVICE)
    first = outcome(call, given)
    for _ in range(16):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.ones(512, 512, device=DEVICE) @ torch.ones(512, 512, device=DEVICE)
        same(outcome(call, given), first)


def test_non_default_stream() -> None:
    call = BY_NAME["norm_backward"]
    given = call.make(2**15, 128, torch.bfloat16, DEVICE)
    want = outcome(call, given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)  # earlier work, so that a launch on another stream would read too early
        got = outcome(call, {name: copied(x) for name, x in given.items()})
    stream.synchronize()
    same(got, want)


def test_device_other_than_the_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call = BY_NAME["norm_backward"]
    given = call.make(500, 64, torch.float32, DEVICE)
    there = outcome(call, {name: x.to("cuda:1") for name, x in given.items()})
    assert torch.cuda.current_device() == 0
    same({name: x.to("cuda:0") for name, x in there.items()}, outcome(call, given))


def test_more_than_2_31_elements() -> None:
    """[17·10⁶, 128] in bf16: the last rows and columns equal those of a call with only these, of equal alignment."""
    rows, c = 17 * 10**6, 128
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * rows * c * 2:
        pytest.skip(f"needs {4 * rows * c * 2 / 2**30:.0f} GiB of free GPU memory, available {free / 2**30:.0f}")
    x = torch.randn(rows, c, device=DEVICE, dtype=torch.bfloat16)
    weight, bias = (numbers(c, seed=seed, device=DEVICE) for seed in range(2))
    for a, b in zip(triton.norm(x, weight, bias, 1e-5), triton.norm(x[-48:], weight, bias, 1e-5), strict=True):
        assert torch.equal(a[-48:], b)
    columns = x.view(c, rows)
    whole, separate = (triton.norm_columns(p, weight, bias, 1e-5) for p in (columns, columns[:, -48:]))
    for a, b in zip(whole, separate, strict=True):
        assert torch.equal(a[-48:], b)
    del whole, separate
    want = x[-48:].clone().add_(bias.bfloat16()).relu_()
    triton.relu(x, bias.bfloat16())
    torch.testing.assert_close(x[-48:], want, rtol=1e-2, atol=1e-2)


def test_scratch_is_bounded() -> None:
    given = BY_NAME["norm_backward"].make(2**18, 256, torch.bfloat16, DEVICE)
    out, made = torch.empty_like(given["x"]), (sums(given["x"], 256), sums(given["x"], 256))

    def call() -> None:
        triton.norm_backward(*(given[name] for name in ("grad", "x", "mean", "rstd", "weight")), out, made)

    call()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    assert torch.cuda.max_memory_allocated() - before <= triton_plan.SCRATCH_BYTES


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("transition", "AF3 with biases"), ("triangle_multiplication", "outgoing"), ("pair_bias", "ending node"),
        ("gated_self_attention", "MSA row"), ("layer_norm", "pair"), ("shared_dropout", "a rank's rows"),
    ],
)  # fmt: skip
def test_triton_is_the_default(kernel: str, name: str) -> None:
    operation = KERNELS[kernel]
    case = next(case for case in operation.cases if case.name == name)
    given = case.make(torch.Generator().manual_seed(0), torch.bfloat16, torch.device(DEVICE))
    assert operation.get_implementation("triton").why_not(**given) is None
    assert torch.equal(operation(**given), operation(**given, implementation="triton"))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_has_the_bits_of_the_reference(dtype: torch.dtype, axis: int) -> None:
    x = numbers(2, 67, 130, 100, dtype=dtype, device=DEVICE)
    for seed in (torch.tensor(2**53 + 11), torch.tensor(-5, device=DEVICE)):
        for one in (x, x.transpose(1, 2), x[:, ::2, 1:, ::3]):
            for p in (0.0, 0.15, 0.75):
                want, got = (
                    shared_dropout(one, p, axis, seed, starts=(0, 5, 2**31), implementation=name)
                    for name in ("reference", "triton")
                )
                assert torch.equal(got, want)


def test_dropout_does_not_synchronize() -> None:
    """The seed is read on the GPU: no synchronization in forward or backward, for a seed on either device."""
    x = numbers(1, 64, 64, 128, device=DEVICE).requires_grad_()

    def step(seed: Tensor) -> None:
        out = shared_dropout(x, 0.25, 1, seed, implementation="triton")
        torch.autograd.grad(out, x, torch.ones_like(out))

    seeds = torch.tensor(3), torch.tensor(3, device=DEVICE)
    for seed in seeds:
        step(seed)  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in seeds:
            step(seed)
    finally:
        torch.cuda.set_sync_debug_mode(before)
