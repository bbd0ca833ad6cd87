"""Pointwise and dropout kernels in Triton compiled ahead of time: no spills, shared memory limits, no atomics."""

from __future__ import annotations

import os
import re

import pytest
import torch

from tests.support.pointwise_calls import CALLS, Call, Given, spread

pytest.importorskip("triton", reason="Triton is not installed (it has wheels for Linux)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing compiles", allow_module_level=True)

from ds4sci.kernels import aot
from ds4sci.kernels.pointwise import triton as host
from ds4sci.kernels.pointwise import triton_configs, triton_plan, triton_static
from ds4sci.kernels.pointwise.triton_configs import BLOCKED, FULL_WIDTH, Config, choose
from ds4sci.kernels.pointwise.triton_static import COMMON_WIDTH, Point, points
from ds4sci.kernels.shared_dropout import triton as dropout
from ds4sci.kernels.triton_launch import Launch

pytestmark = pytest.mark.aot


def tier(point: Point) -> list[pytest.MarkDecorator]:
    """Every run: the most common width in bf16 for one NVIDIA GPU. Slow: two kernels for the other GPUs, on which these
    kernels take the same way through the compiler. Nightly: everything else."""
    if point.dtype != torch.bfloat16 or point.channels != COMMON_WIDTH:
        return [pytest.mark.nightly]
    if point.arch == "sm_90":
        return []
    sampled = point.kernel in ("norm_columns_backward", "glu_columns_backward")
    return [pytest.mark.slow if sampled else pytest.mark.nightly]


@pytest.mark.parametrize("point", [pytest.param(x, id=str(x), marks=tier(x)) for x in points()])
def test_a_shipped_launch(point: Point) -> None:
    assert triton_static.build(point).violations() == []


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "arch",
    [
        "sm_90",
        pytest.param("gfx942", marks=pytest.mark.nightly),
        pytest.param("sm_80", marks=pytest.mark.nightly),
        pytest.param("sm_100", marks=pytest.mark.nightly),
    ],
)
def test_dropout(arch: str, dtype: torch.dtype, axis: int) -> None:
    x = torch.empty(1, 384, 384, 128, dtype=dtype, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    for starts, p in (((0, 0, 0), 0.25), ((1, 2**31, 7), 0.75)):
        (launch,) = dropout.plan(x, seed, p, axis, starts, x)
        kernel = dropout.kernels()[launch.kernel]
        stats = aot.kernel_stats(
            kernel, launch.arguments, launch.constants, arch, warps=launch.warps, stages=launch.stages
        )
        assert stats.violations() == []


def planned_launches(call: Call, given: Given, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Launches of a call, without running them."""
    launches: list[Launch] = []
    monkeypatch.setattr(host, "run", lambda planned, device: launches.extend(planned))
    call.run(host, **given)
    return launches


def bare(given: Given) -> Given:
    return given | {name: None for name in given if "bias" in name or name == "mask"}


EDGE_CASES = {
    "all sizes are 1": lambda call: call.make(1, 1, torch.float16),
    "odd and strided": lambda call: {
        name: x if name in ("mean", "rstd") else spread(x) for name, x in call.make(37, 21, torch.bfloat16).items()
    },
    "no biases, no mask": lambda call: bare(call.make(64, 200, torch.float16)),
    "a float mask": lambda call: (
        call.make(37, 24, torch.float32) | ({"mask": torch.ones(37)} if call.name.startswith("glu") else {})
    ),
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
@pytest.mark.parametrize(
    ("case", "arch"),
    [
        pytest.param(case, arch, marks=[] if (case, arch) == ("odd and strided", "sm_90") else [pytest.mark.nightly])
        for case in EDGE_CASES
        for arch in ("sm_90", "gfx942")
    ],
)
def test_edge_cases_compile(case: str, arch: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and strides of 1 and missing tensors are constants for the compiler, but not for the interpreter."""
    for x in planned_launches(call, EDGE_CASES[case](call), monkeypatch):
        if x.kernel != "add":
            aot.compile_kernel(host.kernels()[x.kernel], x.arguments, x.constants, arch, warps=x.warps, stages=x.stages)


@pytest.mark.parametrize("arch", ["sm_90", pytest.param("gfx942", marks=pytest.mark.nightly)])
def test_rows_in_planes_compile(arch: str) -> None:
    x = torch.empty(384, 48, 128, dtype=torch.bfloat16).transpose(0, 1)
    y, moment, weight = x.reshape(-1, 128), torch.empty(384 * 48), torch.empty(128, dtype=torch.bfloat16)
    sums = torch.zeros(128, dtype=torch.float64), torch.zeros(128, dtype=torch.float64)
    for launch in (
        *triton_plan.norm(x, weight, weight, 1e-5, y, moment, moment),
        *triton_plan.norm_backward(y, x, moment, moment, weight, x, sums),
        *triton_plan.gate(y, weight, y, None, x),
    ):
        if launch.kernel != "add":
            assert launch.constants["PLANES"]
            kernel = host.kernels()[launch.kernel]
            stats = aot.kernel_stats(
                kernel, launch.arguments, launch.constants, arch, warps=launch.warps, stages=launch.stages
            )
            assert stats.violations() == []


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [*FULL_WIDTH, "glu_columns_backward", "gate_backward", "swiglu_backward"])
def test_tensors_beyond_2_gib_on_amd(kernel: str) -> None:
    """Tensors beyond 32-bit offsets use other loads."""
    assert triton_static.build(Point(kernel, "gfx942", COMMON_WIDTH, torch.bfloat16), rows=2**24).violations() == []


IN_PLACE = ("glu_columns_backward", "gate_backward", "relu", "relu_backward", "swiglu_backward")


@pytest.mark.parametrize("arch", ["sm_90", pytest.param("gfx942", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_kernels_store_with_the_layout_of_their_loads(
    name: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile is stored at the addresses, and so in the layout, of its load: each element belongs to one thread."""
    call = next(x for x in CALLS if x.name == name)
    (launch, *_) = planned_launches(call, call.make(64, 21, torch.bfloat16), monkeypatch)
    text = aot.compile_kernel(
        host.kernels()[name], launch.arguments, launch.constants, arch, warps=launch.warps, stages=launch.stages
    ).asm["ttgir"]
    place = r"(%[\w#]+(?:\[%[\w#]+\])?)"
    loads = set(re.findall(rf"(?:tt\.load|buffer_load) {place}", text))
    stores = re.findall(rf"(?:tt\.store|buffer_store %[\w#]+,) {place}.*tensor<\d+x\d+x(?:!tt\.ptr<)?bf16", text)
    assert stores
    assert set(stores) <= loads


def test_tiles_have_at_least_one_element_per_thread() -> None:
    for bits in (16, 32):
        for purpose in (*FULL_WIDTH, *BLOCKED):
            limit = triton_configs.MAX_COLUMN_CHANNELS if "columns" in purpose else triton_configs.MAX_CHANNELS
            for channels in (1, 2, 3, 16, 17, 100, 128, 129, 1000, limit):
                config = choose(purpose, channels, bits)
                assert config.channels * config.others >= 64 * config.warps, (purpose, channels)
                assert config.channels >= min(channels, 8), (purpose, channels)
                if purpose in FULL_WIDTH:
                    assert config.channels >= channels


@pytest.mark.nightly
def test_violations_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles too large for registers or for shared memory."""
    monkeypatch.setattr(triton_plan, "choose", lambda *args: Config(128, 256, 4))
    found = triton_static.build(Point("norm_columns_backward", "sm_90", 128, torch.float32)).violations()
    assert any("spills" in x for x in found)
    monkeypatch.setattr(triton_plan, "choose", lambda *args: Config(128, 512, 16))
    found = triton_static.build(Point("norm_columns", "sm_90", 128, torch.float32)).violations()
    assert any("shared memory" in x for x in found)


def test_scratch_is_bounded() -> None:
    """Partial sums take 16 MiB or those of a single program; there are never more programs than tiles."""
    for kernel in triton_static.KERNELS:
        for channels in triton_static.widths(kernel):
            for rows in (1, 1000, 2**22):
                for launch in triton_static.launches(kernel, channels, torch.bfloat16, rows):
                    if launch.kernel == "add":
                        partial = launch.arguments["partial"]
                        assert partial.nbytes <= max(2**24, partial.nbytes // partial.shape[1])
                        assert partial.shape[1] <= min(rows, triton_plan.MAX_PROGRAMS)
