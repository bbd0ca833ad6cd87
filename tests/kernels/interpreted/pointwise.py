"""The pointwise Triton kernels on the interpreter: results compared with plain torch, strides, aliasing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ds4sci.kernels.pointwise import reference, triton, triton_configs, triton_plan
from tests.support.kernel_runs import uninitialized_memory_is_nan
from tests.support.pointwise_calls import CALLS, Call, Given, assert_accurate, copied, numbers, spread, sums, widened

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = [call.name for call in CALLS]
BY_NAME = {call.name: call for call in CALLS}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 by 16 and two programs for all sums, so that every program processes several tiles."""

    def tile(purpose: str, channels: int, bits: int) -> triton_configs.Config:
        whole = purpose in triton_configs.FULL_WIDTH
        return triton_configs.Config(triton_configs.choose(purpose, channels, bits).channels if whole else 16, 16, 4)

    monkeypatch.setattr(triton_plan, "choose", tile)
    monkeypatch.setattr(triton_plan, "MAX_PROGRAMS", 2)
    monkeypatch.setattr(triton_plan, "PARTIAL_ROWS", 2)


@pytest.fixture
def _shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "choose", triton_configs.choose)
    monkeypatch.setattr(triton_plan, "MAX_PROGRAMS", 1024)


def compare(call: Call, given: Given) -> None:
    """Compare with plain torch; uninitialized memory is NaN."""
    with uninitialized_memory_is_nan():
        got = call.run(triton, **given)
    assert_accurate(got, call.run(reference, **given), call.run(reference, **widened(given)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_accuracy(call: Call, dtype: torch.dtype) -> None:
    for rows, c in ((1, 1), (63, 9), (40, 33)):
        compare(call, call.make(rows, c, dtype))


@pytest.mark.usefixtures("_shipped")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_shipped_tiles(call: Call, dtype: torch.dtype) -> None:
    for rows, c in ((191, 24), (17, 300)):
        compare(call, call.make(rows, c, dtype))


@pytest.mark.usefixtures("_shipped")
def test_maximum_widths() -> None:
    for name, c in (("norm", 8192), ("norm_backward", 8192), ("norm_columns", 1024), ("norm_columns_backward", 1024)):
        compare(BY_NAME[name], BY_NAME[name].make(3, c, torch.float32))


@pytest.mark.parametrize("call", [c for c in CALLS if "bias" in c.make(1, 1, torch.float32)], ids=lambda c: c.name)
def test_without_biases_and_mask(call: Call) -> None:
    given = call.make(33, 20, torch.float32)
    compare(call, given | {name: None for name in given if "bias" in name or name == "mask"})


def test_one_bias_of_two() -> None:
    given = BY_NAME["gate_backward"].make(33, 20, torch.float32)
    for name in ("value_bias", "logits_bias"):
        compare(BY_NAME["gate_backward"], given | {name: None})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["glu_columns", "glu_columns_backward"])
def test_a_float_mask(name: str, kind: torch.dtype) -> None:
    compare(BY_NAME[name], BY_NAME[name].make(50, 7, torch.float16) | {"mask": numbers(50, dtype=kind)})


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", [c for c in CALLS if "norm" in c.name], ids=lambda c: c.name)
def test_parameters_in_their_own_dtype(call: Call, kind: torch.dtype) -> None:
    given = call.make(33, 20, torch.float16)
    compare(call, given | {name: given[name].to(kind) for name in ("weight", "bias") if name in given})


@pytest.mark.parametrize("call", CALLS, ids=IDS)
def test_strides(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    given = call.make(37, 21, torch.bfloat16)
    want = call.run(triton, **given)
    # outputs that the call allocates have the strides of their inputs
    monkeypatch.setattr(torch, "empty_like", copied)
    apart = {name: spread(x) for name, x in given.items() if name not in ("mean", "rstd")}
    assert not any(x.is_contiguous() for x in apart.values())
    for name, x in call.run(triton, **(given | apart)).items():
        assert torch.equal(x, want[name]), name


def planes(n: int, s: int, c: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return numbers(s, n, c, seed=seed, dtype=dtype).transpose(0, 1)


@pytest.mark.parametrize(("n", "s"), [(7, 9), (1, 40), (40, 1), (3, 33)])
def test_rows_in_planes_are_read_and_written_without_copies(n: int, s: int) -> None:
    """x is a tile of a transposed view; out has another layout."""
    x, c = planes(n, s, 12), 12
    weight, bias, grad = numbers(c), numbers(c, seed=1), numbers(n * s, c, seed=2)
    y, mean, rstd = triton.norm(x, weight, bias, 1e-5)
    dense = triton.norm(x.contiguous(), weight, bias, 1e-5)
    assert all(torch.equal(a, b) for a, b in zip((y, mean, rstd), dense, strict=True))
    out, made = planes(n, s, c, seed=3), (sums(x, c), sums(x, c))
    triton.norm_backward(grad, x, mean, rstd, weight, out, made)
    other, expected = torch.empty(n * s, c), (sums(x, c), sums(x, c))
    triton.norm_backward(grad, x.reshape(-1, c), mean, rstd, weight, other, expected)
    assert torch.equal(out.reshape(-1, c), other)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    gated = planes(n, s, c, seed=4)
    triton.gate(y, bias, grad, None, gated)
    want = torch.empty(n * s, c)
    triton.gate(y, bias, grad, None, want)
    assert torch.equal(gated.reshape(-1, c), want)


def test_more_dimensions_where_rows_are_evenly_spaced() -> None:
    x, weight = numbers(2, 3, 5, 8), numbers(8)
    want = triton.norm(x.reshape(-1, 8), weight, None, 1e-5)[0]
    assert torch.equal(triton.norm(x, weight, None, 1e-5)[0], want)
    assert torch.equal(triton.norm(x[0, 0, 0], weight, None, 1e-5)[0], want[:1])
    with pytest.raises(ValueError, match="at most two strides"):
        triton.norm(x.permute(2, 0, 1, 3), weight, None, 1e-5)


def test_a_broadcast_output_gradient() -> None:
    """The gradient of ``out.sum()`` has strides of 0."""
    one = torch.ones(()).expand(33, 20)
    for name in ("norm_backward", "gate_backward", "swiglu_backward"):
        given = BY_NAME[name].make(33, 20, torch.float32)
        want = BY_NAME[name].run(triton, **(given | {"grad": torch.ones(33, 20)}))
        for part, x in BY_NAME[name].run(triton, **(given | {"grad": one})).items():
            assert torch.equal(x, want[part]), part
    made = torch.zeros(20, dtype=torch.float64)
    triton.column_sums(one, made)
    assert made.tolist() == [33] * 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_a_norm_may_overwrite_the_output_gradient(dtype: torch.dtype) -> None:
    for rows in (numbers(40, 20, dtype=dtype), planes(5, 8, 20, dtype)):
        given = BY_NAME["norm_backward"].make(40, 20, dtype) | {"x": rows}
        want = BY_NAME["norm_backward"].run(triton, **given)
        grad = given["grad"].clone()
        made = sums(rows, 20), sums(rows, 20)
        moments = given["mean"], given["rstd"]
        triton.norm_backward(grad, rows, *moments, given["weight"], grad.view(rows.shape), made)
        assert torch.equal(grad.view(rows.shape), want["out"])
        assert torch.equal(made[0], want["weight"])


@pytest.mark.parametrize("call", [c for c in CALLS if "backward" in c.name], ids=lambda c: c.name)
def test_omitted_sums_change_no_other_result(call: Call) -> None:
    class WithoutSums:
        """The module, called without sums."""

        def __getattr__(self, name: str) -> Any:
            count = 2 if name == "gate_backward" else 1
            return lambda *args: getattr(triton, name)(*args[:-count], *[None] * count)

    given = call.make(70, 20, torch.bfloat16)
    want, got = call.run(triton, **given), call.run(WithoutSums(), **given)
    for name, x in got.items():
        if name.endswith("bias") or name == "weight":
            assert torch.equal(x, sums(x, len(x))), name
        else:
            assert torch.equal(x, want[name]), name


def test_the_number_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    run = triton.run
    monkeypatch.setattr(triton, "run", lambda launches, device: run(launched.extend(launches) or launches, device))
    for call in CALLS:
        if "backward" in call.name or call.name == "column_sums":
            compare(call, call.make(100, 9, torch.float32))
    partial = [x.arguments["partial"] for x in launched if x.kernel == "add"]
    assert len(partial) == 7
    assert all(x.shape[1] == 2 for x in partial)
    monkeypatch.setattr(triton_plan, "SCRATCH_BYTES", 0)
    compare(BY_NAME["norm_backward"], BY_NAME["norm_backward"].make(100, 9, torch.float32))
    assert launched[-1].arguments["partial"].shape[1] == 1


@pytest.mark.usefixtures("_shipped")
@pytest.mark.parametrize("rows", [2_000, 60_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
def test_errors_of_sums_do_not_grow_with_the_rows(rows: int) -> None:
    """In units of the sums, √rows. Sequential addition would lose about √rows eps."""
    x = numbers(rows, 16)
    made = torch.zeros(16, dtype=torch.float64)
    triton.column_sums(x, made)
    error = (made - x.double().sum(0)).square().mean().sqrt() / rows**0.5
    assert error < 6 * torch.finfo(torch.float32).eps


def test_empty_inputs() -> None:
    for call in CALLS:
        for name, x in call.run(triton, **call.make(0, 5, torch.float32)).items():
            assert not x.numel() or torch.equal(x, sums(x, len(x))), name


def test_relu_keeps_nan() -> None:
    assert triton.relu(torch.tensor([[-1.0, torch.nan, 2.0, torch.inf]]), None).isnan().tolist() == [
        [False, True, False, False]
    ]


def test_refusals() -> None:
    assert triton.why_not(torch.empty(3, 8192)) is None
    assert "up to 8192 channels, not 8193" in str(triton.why_not(torch.empty(3, 8193)))
    assert "not float64" in str(triton.why_not(torch.empty(3, 8, dtype=torch.float64)))
    with pytest.raises(ValueError, match="norm_columns takes up to 1024 channels"):
        triton.norm_columns(torch.empty(1025, 2), torch.empty(1025), None, 1e-5)
    with pytest.raises(ValueError, match="norm takes up to 8192 channels"):
        triton.norm(torch.empty(2, 8193), torch.empty(8193), None, 1e-5)
