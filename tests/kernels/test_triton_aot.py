"""Evoformer attention in Triton compiled ahead of time: no spills, shared memory limits, matrix instructions.

Every shipped config for every architecture. ``python -m ds4sci.bench.triton_static`` writes the table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed (it has wheels for Linux)")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: nothing compiles", allow_module_level=True)

from ds4sci.kernels import aot
from ds4sci.kernels.evoformer_attention import triton as host
from ds4sci.kernels.evoformer_attention import triton_configs, triton_static
from ds4sci.kernels.evoformer_attention.triton_configs import Config
from ds4sci.kernels.evoformer_attention.triton_static import Point, points

pytestmark = pytest.mark.aot
TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "triton_evoformer_attention_static.json"
ANY_LENGTH = [x for x in points(dtypes=(torch.bfloat16,)) if x.longest is None]
EVERY_RUN = {str(x) for x in ANY_LENGTH if x.arch == "sm_90" or (x.arch, x.d, x.purpose) == ("gfx942", 32, "attend")}
"""Points compiled in every run: every width on sm_90, and one for an AMD GPU."""
OTHER_GPUS = {("attend", 32), ("grad_keys", 128), ("grad_bias", 32)}
"""Purpose and d of the points that slow tests compile for the other architectures: one for every kernel, with
``grad_bias`` the one that needs the most registers, and the widest heads. ``grad_bias`` is ``grad_queries`` with one
more gradient. Nightly tests compile the whole table."""


def tier(point: Point) -> list[pytest.MarkDecorator]:
    if str(point) in EVERY_RUN:
        return []
    if point.dtype != torch.bfloat16:
        return [pytest.mark.nightly]
    sampled = point.longest is None and (point.purpose, point.d) in OTHER_GPUS
    return [pytest.mark.slow if sampled else pytest.mark.nightly]


@pytest.mark.parametrize("point", [pytest.param(x, id=str(x), marks=tier(x)) for x in points()])
def test_a_shipped_config(point: Point) -> None:
    for stats in triton_static.build(point):
        assert stats.violations(matrix=point.matrix) == []


def odd_length_tier(point: Point) -> pytest.MarkDecorator:
    sampled = {("sm_90", "attend"), ("sm_90", "grad_keys"), ("gfx942", "attend")}
    is_sampled = point.longest is None and (point.arch, point.purpose) in sampled
    return pytest.mark.slow if is_sampled else pytest.mark.nightly


@pytest.mark.parametrize(
    "point",
    [pytest.param(x, id=str(x), marks=odd_length_tier(x)) for x in points(widths=(32,), dtypes=(torch.bfloat16,))],
)
def test_an_odd_length(point: Point) -> None:
    """The rows of the bias are unaligned, which needs other loads and registers."""
    for stats in triton_static.build(point, n=383, s=5, heads=3):
        assert stats.violations(matrix=point.matrix) == []


def sm_90(config: Config, purpose: str = "grad_queries") -> list[str]:
    point = Point(purpose, "sm_90", 128, torch.bfloat16, "ieee", None, config)
    return [violation for stats in triton_static.build(point) for violation in stats.violations(matrix=point.matrix)]


def test_violations_are_detected() -> None:
    """Tiles too large for registers and shared memory; tiles too small for a warp group's matrix instructions."""
    violations = sm_90(Config(2, 128, 64, 8, 3))
    assert any("spills" in x for x in violations)
    assert any("shared memory" in x for x in violations)
    assert {"no HGMMA", "HMMA"} <= {x.lstrip("0123456789 ") for x in sm_90(Config(1, 32, 32, 4, 1), "attend")}


def test_an_atomic_is_detected() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def add(x):
        tl.atomic_add(x, 1.0)

    for arch in aot.ARCHITECTURES:
        stats = aot.kernel_stats(add, {"x": torch.empty(4, device="meta")}, {}, arch, warps=4, stages=1)
        assert [x for x in stats.violations() if "atomic" in x], arch


def test_arguments_are_specialized_as_at_launch() -> None:
    """Comparison with Triton's own rule, if this version exposes it."""
    jit = pytest.importorskip("triton.runtime.jit")
    if not hasattr(jit, "native_specialize_impl"):
        pytest.skip("this version of Triton does not expose its rule")
    from triton.backends.nvidia.compiler import CUDABackend

    aligned = torch.empty(64, dtype=torch.bfloat16)
    for value in (1, 0, 16, 17, 2**31, 2**40 + 1, 0.5, None, aligned, aligned[1:], aligned.view(torch.uint8)):
        kind, key = jit.native_specialize_impl(CUDABackend, value, False, True, True)
        assert aot.specialize(value) == (kind, "" if kind == "constexpr" else key or ""), value


def test_every_length_and_width_has_a_config() -> None:
    for arch in (
        *aot.ARCHITECTURES,
        "sm_86",
        "sm_89",
        "sm_103",
        "sm_120",
        "gfx90a",
        "gfx950",
        "gfx1100",
        "interpreter",
    ):
        for bits in (16, 32):
            for d in triton_static.WIDTHS:
                for purpose in triton_static.PURPOSES:
                    for length in (1, 32, 33, 10**6):
                        config = triton_configs.choose(purpose, arch, d, bits, length, 10**6)
                        assert triton_configs.choose(purpose, arch, d, bits, length, 1).rows == 1
                        assert max(config.block_m, config.block_n) <= 128, "host._needs_64_bit_offsets relies on it"


def test_the_table_has_the_shipped_configs() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert [row["point"] for row in table["points"]] == [str(x) for x in points()]
    for row, point in zip(table["points"], points(), strict=True):
        assert Config(**row["config"]) == point.config, f"{point}: run {table['command']}"


def test_scratch_is_bounded() -> None:
    """Partial sums take at most 256 MiB, half of q, or one sum, whichever is largest."""
    for n, s, h in ((64, 4096, 8), (384, 5120, 8), (1024, 1024, 4), (2048, 2048, 4), (4096, 16, 16)):
        q = torch.empty(1, s, n, h, 32, dtype=torch.bfloat16, device="meta")
        bias = torch.empty(1, h, n, n, dtype=torch.bfloat16, device="meta")
        lse = torch.empty(1, s, h, n, device="meta")
        grads, launches = host.plan_backward(
            q, None, q, q, q, None, bias, None, q, lse, lse, 0.2, [True] * 3 + [False, True, False], "sm_90"
        )
        partial = grads[4]
        assert partial is not None
        assert partial.nbytes <= max(2**28, q.nbytes // 2, 4 * h * n * n)
        assert sum(x.kernel == "grad_queries" for x in launches) <= 200


EDGE_CASES = {
    "all sizes are 1": {"s": 1, "n": 1, "h": 1, "d": 8},
    "a column": {"s": 50, "n": 5, "transposed": True, "bias": False, "gate": False},
    "a float mask": {"d": 24, "mask": torch.float32, "needs_grad": (False, False, False, True, False, False)},
    "no mask, bias of the keys": {"n": 48, "mask": None, "per_query": False, "kind": torch.float16},
    "large strides": {"n": 40, "large_strides": True},
    "fp32 with lse's gradient": {"n": 33, "d": 40, "kind": torch.float32, "lse": True},
    "only the gate": {"needs_grad": (False, False, False, False, False, True)},
}


@pytest.mark.parametrize(
    ("case", "arch"),
    [pytest.param(case, "sm_90") for case in EDGE_CASES]
    + [
        pytest.param(case, "gfx942", marks=pytest.mark.slow if case == "all sizes are 1" else pytest.mark.nightly)
        for case in EDGE_CASES
    ],
)
def test_edge_cases_compile(case: str, arch: str) -> None:
    """Sizes and strides of 1 and missing tensors are constants for the compiler, but not for the interpreter."""
    for launch in edge_case_launches(arch, **EDGE_CASES[case]):
        kernel = host.kernels()[launch.kernel]
        aot.compile_kernel(kernel, launch.arguments, launch.constants, arch, warps=launch.warps, stages=launch.stages)


def edge_case_launches(
    arch: str, *, s: int = 3, n: int = 17, h: int = 2, d: int = 32, kind: torch.dtype = torch.bfloat16,
    mask: torch.dtype | None = torch.bool, bias: bool = True, gate: bool = True, transposed: bool = False,
    per_query: bool = True, large_strides: bool = False, lse: bool = False, needs_grad: tuple[bool, ...] | None = None,
) -> list[host.Launch]:  # fmt: skip
    def meta(*size: int, dtype: torch.dtype = kind) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def like_q() -> torch.Tensor:
        if large_strides:
            return meta(2**40).as_strided((1, s, n, h, d), (0, 2**33, 2**31 + 8, d, 1))
        return meta(1, n, s, h, d).transpose(1, 2) if transposed else meta(1, s, n, h, d)

    q, k, v, grad = (like_q() for _ in range(4))
    masks = None if mask is None else meta(1, s, n, dtype=mask)
    biases = meta(1, h, n if per_query else 1, n) if bias else None
    gates = like_q() if gate else None
    out, one, other = meta(1, s, n, h, d), *(meta(1, s, h, n, dtype=torch.float32) for _ in range(2))
    asked = needs_grad or (True, True, True, mask is not None and mask.is_floating_point, bias, gate)
    forward = host.plan_forward(q, k, v, masks, biases, gates, out, one, other, 0.2, arch)
    _, launches = host.plan_backward(
        grad, one if lse else None, q, k, v, masks, biases, gates, out, one, other, 0.2, asked, arch
    )
    return [forward, *launches]
