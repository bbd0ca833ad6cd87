"""Evoformer attention: the kernel contract, gradcheck, lse, torch.compile, vmap, refusals, builds."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ds4sci.kernels import evoformer_attention, evoformer_attention_lse, native
from ds4sci.kernels.evoformer_attention import KERNEL, LSE_KERNEL
from ds4sci.kernels.evoformer_attention import tiled as tiled_module
from ds4sci.kernels.spec import Case, Implementation
from tests.support.kernel_contract import GrowthContract, ThreadContract
from tests.support.kernel_runs import cpu_names, floats, make_inputs, runnable_names
from tests.support.kernel_runs import normal as normal64

FUSED = runnable_names(KERNEL, ("triton", "native", "tiled"))
ON_CPU = runnable_names(KERNEL, ("native", "tiled"))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(
        dtype
    )


def example(b: int = 1, s: int = 3, n: int = 10, h: int = 2, d: int = 8, **other: Any) -> dict[str, torch.Tensor]:
    names = ("q", "k", "v", "gate")
    given = {name: normal(b, s, n, h, d, seed=i, **other) for i, name in enumerate(names)}
    given["pair_bias"] = normal(b, h, n, n, **other)
    given["mask"] = torch.rand(b, s, n, generator=torch.Generator().manual_seed(0)) > 0.2
    return given


class TestContract(ThreadContract, GrowthContract):
    kernel = KERNEL

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        shapes = [((b, s, n, 2, 8), (b, s, n, 2, 8)) for b, s, n in ((0, 3, 4), (1, 0, 4), (1, 3, 0))]
        shapes += [((1, 3, 4, 2, 8), (1, 3, 0, 2, 8)), ((1, 3, 0, 2, 8), (1, 3, 4, 2, 8))]
        return [
            {
                "q": torch.randn(q), "k": torch.randn(k), "v": torch.randn(k), "mask": torch.zeros(k[:3]),
                "pair_bias": torch.zeros(1, 2, q[2], k[2]),
            }
            for q, k in shapes
        ]  # fmt: skip

    def test_output_and_lse_own_their_memory(self, implementation: Implementation, case: Case) -> None:
        inputs = make_inputs(case, torch.float32, implementation)
        inputs.pop("gate", None)
        leaves = {name: x.detach().requires_grad_() for name, x in floats(inputs).items()}
        for out in LSE_KERNEL.get_implementation(implementation.name).run(**(inputs | leaves)):
            self._assert_owns(out, leaves, implementation)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (5, 17), (63, 2)])
def test_equals_sdpa_with_summed_biases(queries: int, keys: int) -> None:
    b, s, h, d = 2, 3, 2, 8
    q, k, v = normal64(b, s, queries, h, d), normal64(b, s, keys, h, d, seed=1), normal64(b, s, keys, h, d, seed=2)
    bias, gate = normal64(b, h, queries, keys), normal64(b, s, queries, h, d, seed=3)
    mask = torch.rand(b, s, keys, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[..., 0] = True
    got = evoformer_attention(q, k, v, mask, bias, gate)
    summed = bias.unsqueeze(1).expand(b, s, h, queries, keys).masked_fill(~mask[:, :, None, None, :], -torch.inf)
    want = F.scaled_dot_product_attention(*(x.transpose(2, 3) for x in (q, k, v)), attn_mask=summed).transpose(2, 3)
    torch.testing.assert_close(got, want * torch.sigmoid(gate))
    added = torch.where(mask, 0.0, -1e9).double()
    torch.testing.assert_close(evoformer_attention(q, k, v, added, bias, gate), got)


def test_a_query_without_keys_has_output_0_and_gradient_0() -> None:
    q, k, v = (normal64(1, 2, 5, 2, 8, seed=i).requires_grad_() for i in range(3))
    bias = normal64(1, 2, 5, 5).requires_grad_()
    mask = torch.ones(1, 2, 5, dtype=torch.bool)
    mask[0, 1] = False
    out = evoformer_attention(q, k, v, mask, bias)
    assert (out[0, 1] == 0).all()
    out.sum().backward()
    for x in (q, k, v):
        assert (x.grad[0, 1] == 0).all()
        assert x.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_column_attention_is_row_attention_of_a_transposed_view() -> None:
    x = normal64(1, 4, 6, 2, 8)
    rows = evoformer_attention(*(x.transpose(1, 2),) * 3)
    copied = evoformer_attention(*(x.transpose(1, 2).contiguous(),) * 3)
    torch.testing.assert_close(rows, copied)


MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("name", cpu_names(KERNEL))
@pytest.mark.parametrize("value", [MAX, 2.5e38, 1e38, 1e12, 1e9])
@pytest.mark.parametrize("as_mask", [True, False], ids=["mask", "pair bias"])
def test_a_key_with_a_huge_score_gets_all_the_weight(name: str, value: float, as_mask: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 2, 8, generator=generator).requires_grad_() for _ in range(3))
    added = torch.zeros(5).index_fill(0, torch.tensor(1), value)
    out, lse = evoformer_attention_lse(
        q, k, v, added.view(1, 1, 5) if as_mask else None, None if as_mask else added.view(1, 1, 1, 5),
        implementation=name,
    )  # fmt: skip
    torch.testing.assert_close(out, v[:, :, 1:2].expand_as(out))
    torch.testing.assert_close(lse, torch.full_like(lse, value))
    grad = torch.autograd.grad(out.sum(), v)[0]
    assert grad[0, 0, 1].sub(5).abs().max() < 1e-5
    assert grad.sum() == pytest.approx(5 * 16)


@pytest.mark.parametrize("name", cpu_names(KERNEL))
def test_plus_infinity_gives_nan(name: str) -> None:
    q = torch.ones(1, 1, 3, 1, 8)
    assert evoformer_attention(q, q, q, torch.tensor([[[0, math.inf, 0]]]), implementation=name).isnan().all()


@pytest.mark.parametrize("implementation", ["tiled", "reference"])
def test_gradcheck(implementation: str) -> None:
    given = example(s=2, n=4, d=3, dtype=torch.float64)
    given["mask"] = normal(1, 2, 4, dtype=torch.float64)
    names, tensors = list(given), [x.requires_grad_() for x in given.values()]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return evoformer_attention(**dict(zip(names, values, strict=True)), implementation=implementation)

    assert torch.autograd.gradcheck(function, tensors)
    if implementation == "reference":
        assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("implementation", FUSED)
def test_second_derivatives_are_refused_by_name(implementation: str) -> None:
    given = example()
    q = given.pop("q").requires_grad_()
    out = evoformer_attention(q, **given, implementation=implementation)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="implementation='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("implementation", [*FUSED, "reference"])
def test_results_over_two_halves_of_the_keys_merge(implementation: str) -> None:
    given = example(n=12)
    del given["gate"]
    given["mask"][:, 1, :6] = False  # no keys in this half for one row
    leaves = {name: x.clone().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    whole = evoformer_attention(**leaves, mask=given["mask"], implementation="reference")
    weight = normal(*whole.shape, seed=9)
    want = torch.autograd.grad(whole, list(leaves.values()), weight)
    parts = []
    for half in (slice(0, 6), slice(6, 12)):
        parts.append(
            evoformer_attention_lse(
                leaves["q"], leaves["k"][:, :, half], leaves["v"][:, :, half], given["mask"][..., half],
                leaves["pair_bias"][..., half], implementation=implementation,
            )
        )  # fmt: skip
    (out_1, lse_1), (out_2, lse_2) = parts
    lse = torch.logaddexp(lse_1, lse_2)
    share = [torch.exp(x - lse).transpose(-1, -2).unsqueeze(-1) for x in (lse_1, lse_2)]
    merged = share[0] * out_1 + share[1] * out_2
    torch.testing.assert_close(merged, whole)
    for got, expected in zip(torch.autograd.grad(merged, list(leaves.values()), weight), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", FUSED)
def test_opcheck(implementation: str, dtype: torch.dtype) -> None:
    given = example(dtype=dtype)
    q, k, v, gate, bias = (given[x].requires_grad_() for x in ("q", "k", "v", "gate", "pair_bias"))
    torch.library.opcheck(
        torch.ops.ds4sci.evoformer_attention.default, (q, k, v, given["mask"], bias, gate, 0.3, implementation)
    )


@pytest.mark.parametrize("implementation", FUSED)
def test_compiles_without_graph_breaks(implementation: str) -> None:
    given = example()

    def function(**x: torch.Tensor) -> torch.Tensor:
        return evoformer_attention(**x, implementation=implementation).square()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), function(**given))
    ours = {name: x.clone().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    grads = [
        torch.autograd.grad(f(**ours, mask=given["mask"]).sum(), list(ours.values())) for f in (compiled, function)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", FUSED)
def test_vmap_equals_a_loop(implementation: str, dtype: torch.dtype) -> None:
    """torch 2.13 supports vmap, but not torch.func.grad, over custom operators."""
    one = example(b=2, dtype=dtype)
    other = {name: x.flip(1) for name, x in one.items()}
    bias = one["pair_bias"][:1]  # shared by both and by the batch
    many = {name: torch.stack([one[name], other[name]], dim=1) for name in one if name != "pair_bias"}

    def function(x: dict[str, torch.Tensor], bias: torch.Tensor) -> torch.Tensor:
        return evoformer_attention(**x, pair_bias=bias, implementation=implementation)

    got = torch.func.vmap(function, in_dims=(1, None))(many, bias)
    for i, given in enumerate((one, other)):
        torch.testing.assert_close(got[i], function({k: x for k, x in given.items() if k != "pair_bias"}, bias))


@pytest.mark.parametrize("implementation", FUSED)
def test_activation_checkpointing(implementation: str) -> None:
    from torch.utils.checkpoint import checkpoint

    given = example()
    q = given.pop("q").requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        return evoformer_attention(x, **given, implementation=implementation).sum()

    (plain,) = torch.autograd.grad(function(q), q)
    (again,) = torch.autograd.grad(checkpoint(function, q, use_reentrant=False), q)
    assert torch.equal(plain, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ON_CPU)
@pytest.mark.parametrize("d", [8, 16])
def test_a_high_bias_does_not_overflow_beyond_the_last_query(implementation: str, d: int, dtype: torch.dtype) -> None:
    """e^200 overflows fp32: empty positions of a tile must not compute it and multiply it by 0."""
    given = example(n=33, d=d, dtype=dtype)
    given["pair_bias"] += 200.0
    given["mask"] = torch.full((1, 3, 33), 200.0, dtype=dtype)
    leaves = {name: x.requires_grad_() for name, x in given.items()}
    out = evoformer_attention(**leaves, implementation=implementation)
    for name, grad in zip(leaves, torch.autograd.grad(out.sum(), list(leaves.values())), strict=True):
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "pair_bias", "mask"])
@pytest.mark.parametrize("implementation", FUSED)
def test_nan_and_infinity_propagate_as_in_torch(implementation: str, name: str, bad: float) -> None:
    given = example(n=12)
    given["mask"] = torch.zeros(1, 3, 12)
    given[name].view(-1)[5] = bad
    outs, grads = [], []
    for one in (implementation, "reference"):
        leaves = {key: x.clone().requires_grad_() for key, x in given.items()}
        outs.append(evoformer_attention(**leaves, implementation=one))
        grads.append(torch.autograd.grad(outs[-1].sum(), list(leaves.values())))
    assert outs[1].isfinite().all() == (bad == torch.inf and name == "v" and outs[1].isfinite().all())
    assert torch.equal(outs[0].isfinite(), outs[1].isfinite())
    for key, ours, theirs in zip(given, *grads, strict=True):
        assert (ours.isfinite() <= theirs.isfinite()).all(), key


def test_tiles_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_module, "TILE_SCORES", 50)
    given = example(b=2, s=5, n=11)
    seen = torch.zeros(2, 5, 11)
    for p in tiled_module.tiles(given["q"], given["k"]):
        seen[p.b, p.rows, p.queries] += 1
    assert (seen == 1).all()
    torch.testing.assert_close(
        evoformer_attention(**given, implementation="tiled"), evoformer_attention(**given, implementation="reference")
    )


def test_wrong_shapes_are_refused_by_name() -> None:
    given = example()
    for name, wrong, words in (
        ("v", normal(1, 3, 9, 2, 8), r"v must be \(1, 3, 10, 2, 8\)"),
        ("mask", torch.ones(1, 10, dtype=torch.bool), r"mask must be \(1, 3, 10\)"),
        ("mask", torch.ones(1, 3, 10, dtype=torch.int64), "bool or floating"),
        ("pair_bias", normal(2, 10, 10), r"pair_bias must be \(1, 2, 10, 10\)"),
        ("gate", given["gate"].double(), "gate must be torch.float32"),
        ("q", normal(3, 10, 2, 8), r"\[b, s, n, h, d\]"),
    ):
        with pytest.raises(ValueError, match=words):
            evoformer_attention(**(given | {name: wrong}))


def test_native_refuses_with_a_reason() -> None:
    with pytest.raises(ValueError, match="not float64"):
        evoformer_attention(**example(dtype=torch.float64), implementation="native")
    with pytest.raises(ValueError, match="up to 256 channels"):
        evoformer_attention(**example(d=257), implementation="native")


SCRIPT = """
import torch
from ds4sci.kernels import evoformer_attention, native
q, k, v, gate = (torch.randn(1, 3, 40, 2, 20, generator=torch.Generator().manual_seed(i)) for i in range(4))
bias = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(9)).requires_grad_()
q.requires_grad_()
mask = torch.rand(1, 3, 40, generator=torch.Generator().manual_seed(10)) > .3
results = []
for name in ("native", "reference"):
    out = evoformer_attention(q, k, v, mask, bias, gate, implementation=name)
    results.append((out, *torch.autograd.grad(out.square().sum(), (q, bias))))
for a, b in zip(*results):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
print(native.isa().name)
"""


def run_with(cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DS4SCI_CACHE": str(cache)} | variables
    return subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(isa.name, marks=[] if isa.needs else [pytest.mark.nightly])  # portable code takes half a minute
        for isa in native.ISAS
        if isa.needs <= native._processor_flags()
    ],
)
def test_every_instruction_set_of_this_machine(name: str, tmp_path: Path) -> None:
    try:
        native.compiler()
    except native.BuildError as error:
        pytest.skip(str(error))
    done = run_with(tmp_path, DS4SCI_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name]
    assert f"building evoformer_attention for {name}, once" in done.stderr
    (built,) = tmp_path.glob("*.so")
    if name == native.ISAS[-1].name:
        done = run_with(tmp_path, DS4SCI_ISA=name)
        assert "building" not in done.stderr, f"built again, though {built} is there"


def test_without_a_compiler_tiled_runs(tmp_path: Path) -> None:
    script = (
        "import torch; from ds4sci.kernels import KERNELS, evoformer_attention as f; x = torch.ones(1, 1, 2, 1, 8);"
        "print(KERNELS['evoformer_attention'].get_implementation('native').why_not(x, x, x)); f(x, x, x)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"PATH": str(tmp_path), "CXX": "", "DS4SCI_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert "no C++ compiler found" in done.stdout


@pytest.mark.nightly
def test_sixteen_lanes_on_any_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vector width of AVX-512 compiled for this machine: the same code, with two registers per vector if needed."""
    if native.isa().lanes == 16:
        pytest.skip("this machine has vectors of sixteen lanes: every other test of the native code uses them")
    wide = native.Isa("avx512", 16, 12, native.isa().flags, frozenset())
    try:
        monkeypatch.setenv("DS4SCI_CACHE", str(tmp_path))
        library = native.build("evoformer_attention", wide)
    except native.BuildError as error:
        pytest.skip(str(error))
    import ctypes

    loaded = ctypes.CDLL(str(library))
    monkeypatch.setattr(native, "load", lambda name, *structs: loaded)
    monkeypatch.setattr(native, "isa", lambda: wide)
    for case in KERNEL.cases:
        given = case.make(torch.Generator().manual_seed(0), torch.float32, torch.device("cpu"))
        leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x.is_floating_point()}
        outs = [evoformer_attention(**(given | leaves), implementation=name) for name in ("native", "tiled")]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(out.sum(), list(leaves.values())) for out in outs]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
