"""Memory accesses of the pointwise and dropout kernels: bounds, races, bytes, and offsets beyond 2³¹ elements.

Counts the bytes that unmasked lanes request.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from triton.runtime.errors import InterpreterError

from ds4sci.kernels.pointwise import triton, triton_configs, triton_plan
from ds4sci.kernels.shared_dropout import triton as dropout
from tests.support import triton_interpreter
from tests.support.pointwise_calls import CALLS, Call, numbers
from tests.support.triton_interpreter import Accesses, watch

ROWS, C = 39, 37
TILE = 16
PROGRAMS = 2
BLOCKS = -(-C // TILE)
TILES = -(-ROWS // TILE)
BY_NAME = {call.name: call for call in CALLS}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 by 16, in norms of all channels, and two programs per block of sums."""

    def tile(purpose: str, channels: int, bits: int) -> triton_configs.Config:
        whole = purpose in triton_configs.FULL_WIDTH
        return triton_configs.Config(triton_configs.choose(purpose, channels, bits).channels if whole else 16, 16, 4)

    monkeypatch.setattr(triton_plan, "choose", tile)
    monkeypatch.setattr(triton_plan, "SCRATCH_BYTES", 2**20)


def launched(call: Call, monkeypatch: pytest.MonkeyPatch) -> list[Accesses]:
    whole = call.name in triton_configs.FULL_WIDTH
    monkeypatch.setattr(triton_plan, "MAX_PROGRAMS", PROGRAMS if whole else PROGRAMS * BLOCKS)
    seen = watch(monkeypatch, triton)
    call.run(triton, **call.make(ROWS, C, torch.float16))
    return seen


def model(kernel: str) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes read and written by argument: every tile once; parameters and sums once per program."""
    half, single = 2, 4
    tile, row, channel = ROWS * C * half, ROWS * single, C * half
    partial = PROGRAMS * C * single
    moments = {"mean": row, "rstd": row}
    made = dict.fromkeys(("weight_sums", "bias_sums"), partial)
    both_sums = dict.fromkeys(("u_sums", "v_sums"), partial)
    mask = ROWS * BLOCKS  # one byte each per block of channels
    models = {
        "norm": ({"x": tile, "weight": channel * TILES, "bias": channel * TILES}, {"y": tile} | moments),
        "norm_backward": ({"x": tile, "grad": tile, "weight": channel * PROGRAMS} | moments, {"out": tile} | made),
        "norm_columns": ({"p": tile, "weight": channel * TILES, "bias": channel * TILES}, {"y": tile} | moments),
        "norm_columns_backward": (
            {"p": tile, "grad": tile, "weight": channel * PROGRAMS} | moments, {"out": tile} | made,
        ),
        "glu_columns": ({"joint": 2 * tile, "bias": 2 * channel * TILES, "mask": mask}, {"out": tile}),
        "glu_columns_backward": (
            {"joint": 2 * tile, "grad": tile, "bias": 2 * channel * PROGRAMS, "mask": mask},
            {"joint": 2 * tile} | both_sums,
        ),
        "gate": (
            {"value": tile, "logits": tile, "value_bias": channel * TILES, "logits_bias": channel * TILES},
            {"out": tile},
        ),
        "gate_backward": (
            dict.fromkeys(("value", "logits", "grad"), tile)
            | dict.fromkeys(("value_bias", "logits_bias"), channel * PROGRAMS),
            {"value": tile, "logits": tile, "value_sums": partial, "logits_sums": partial},
        ),
        "relu": ({"hidden": tile, "bias": channel * TILES}, {"hidden": tile}),
        "relu_backward": ({"grad": tile, "hidden": tile}, {"grad": tile, "sums": partial}),
        "swiglu": ({"joint": 2 * tile, "bias": 2 * channel * TILES}, {"out": tile}),
        "swiglu_backward": (
            {"joint": 2 * tile, "grad": tile, "bias": 2 * channel * PROGRAMS}, {"joint": 2 * tile} | both_sums,
        ),
        "column_sums": ({"x": tile}, {"sums": partial}),
    }  # fmt: skip
    return models[kernel]


ADDED = {"norm_backward": 2, "norm_columns_backward": 2, "glu_columns_backward": 2, "gate_backward": 2,
         "relu_backward": 1, "swiglu_backward": 2, "column_sums": 1}  # fmt: skip
"""Number of sums that each call computes."""


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_accesses_match_the_model_without_races(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = launched(call, monkeypatch)
    assert [x.kernel for x in seen] == [call.name] + ["add"] * (call.name in ADDED)
    read, written = model(call.name)
    assert +seen[0].read == Counter(read)
    assert +seen[0].written == Counter(written)
    if call.name in ADDED:
        total = dict.fromkeys(("first", "second")[: ADDED[call.name]], C * 8)  # fp64
        assert +seen[1].read == Counter(total | {"partial": ADDED[call.name] * PROGRAMS * C * 4})
        assert +seen[1].written == Counter(total)
    for x in seen:
        assert not +x.outside, f"{x.kernel}: {x.outside}"
        assert not +x.races, f"{x.kernel}: {x.races}"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_one_row_too_many_is_detected(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe can fail: each kernel gets one row or column more than exists."""
    run = triton.run

    def lying(launches: Any, device: torch.device) -> None:
        for launch in launches:
            for name in ("rows", "columns", "parts"):
                if name in launch.arguments:
                    launch.arguments[name] += 1
            run([launch], device)

    monkeypatch.setattr(triton, "run", lying)
    assert all(+x.outside for x in launched(call, monkeypatch))


@pytest.mark.parametrize("axis", [1, 2])
def test_dropout_reads_and_writes_once(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "ELEMENTS", 64)
    seen = watch(monkeypatch, dropout)
    x = numbers(2, 19, 11, 9, dtype=torch.float16)
    dropout.shared_dropout(x, 0.25, axis, torch.tensor(7))
    assert +seen[0].written == {"out": x.nbytes}
    programs = 2 * -(-x.shape[axis] // dropout.PLACES_PER_MASK) * -(-x.shape[3 - axis] // 4)
    assert +seen[0].read == {"x": x.nbytes, "seed": 8 * programs}
    assert not +seen[0].outside
    assert not +seen[0].races


FAR = 2**30 + 64


@pytest.fixture
def _checked(monkeypatch: pytest.MonkeyPatch) -> Any:
    triton_interpreter.check_overflow(True)
    yield
    triton_interpreter.check_overflow(False)


def far(x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """The same values with these strides, in huge storage that takes no memory because little of it is touched."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    return torch.empty(size, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


@pytest.mark.usefixtures("_checked")
@pytest.mark.parametrize("strides", [(FAR, 1), (8, FAR // 2)], ids=["rows", "channels"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_large_strides_give_the_results_of_dense_tensors(
    call: Call, strides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the interpreter's overflow check enabled."""
    given = call.make(5, 6, torch.float16)
    want = call.run(triton, **given)
    apart = {name: far(x, strides) for name, x in given.items() if x.dim() == 2}
    for name, x in call.run(triton, **(given | apart)).items():
        assert torch.equal(x, want[name]), name


@pytest.mark.usefixtures("_checked")
def test_large_strides_of_planes() -> None:
    x, weight = numbers(3, 5, 6), numbers(6)
    apart = far(x, (FAR, 2**28, 1))
    for one, other in zip(triton.norm(apart, weight, None, 1e-5), triton.norm(x, weight, None, 1e-5), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("_checked")
def test_the_check_detects_32_bit_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm with 32-bit offsets of channels."""
    from ds4sci.kernels.pointwise import triton_norms

    monkeypatch.setitem(triton_norms.norm.fn.__globals__, "offsets", lambda index, stride: index * stride)
    with pytest.raises(InterpreterError, match="overflow"):
        triton.norm(far(numbers(5, 6), (8, FAR // 2)), numbers(6), None, 1e-5)
