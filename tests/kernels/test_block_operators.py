"""What the block's fused operations keep beyond their numbers: compilers, checkpoints, refusals, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.bench.memory import peak_memory_mb
from ds4sci.kernels import KERNELS, attention_pair_bias, native
from ds4sci.kernels.gated_self_attention import Weights
from ds4sci.kernels.pointwise import BACKENDS
from ds4sci.kernels.spec import Case, Kernel
from ds4sci.kernels.tiles import tile_slices
from tests.kernels.test_contract import CONSTANT, floats, replaced, run, widened

ROOT = Path(__file__).resolve().parents[2]
FUSED = [k for k in KERNELS.values() if k.name not in ("varlen_attention", "evoformer_attention", "shared_dropout")]
ON_A_CPU = ("native", "tiled")


def smallest(kernel: Kernel, name: str = "") -> Case:
    """A small case of a kernel with everything that may be absent."""
    names = {
        "gated_self_attention": "MSA row", "pair_bias": "ending node", "triangle_multiplication": "outgoing",
        "outer_product_mean": "few rows", "transition": "AF3 with biases", "layer_norm": "pair",
    }  # fmt: skip
    return next(case for case in kernel.cases if case.name == (name or names[kernel.name]))


def example(kernel: Kernel, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return smallest(kernel).make(torch.Generator().manual_seed(0), dtype, torch.device("cpu"))


def fused(kernel: Kernel, implementation: str, given: dict[str, Any]) -> Any:
    if implementation not in (one.name for one in kernel.implementations):
        pytest.skip(f"{kernel.name} is matrix products alone: it has no {implementation} implementation")
    chosen = kernel.get_implementation(implementation)
    reason = chosen.why_not(**given)
    if reason:
        pytest.skip(reason)
    return chosen.run


def leaves(kernel: Kernel, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    variable = {name: x for name, x in floats(given).items() if name not in CONSTANT.get(kernel.name, ())}
    return {name: x.detach().clone().requires_grad_() for name, x in variable.items()}


@pytest.mark.parametrize("implementation", ON_A_CPU)
@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_compiles_without_a_break(kernel: Kernel, implementation: str) -> None:
    given = example(kernel)
    function = fused(kernel, implementation, given)
    torch.compiler.reset()
    got = run(kernel, torch.compile(function, fullgraph=True, backend="aot_eager"), given)
    want = run(kernel, function, given)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_torch_agrees_that_the_operators_are_sound(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that the public function makes, caught on their way to the operator."""
    module = sys.modules[f"ds4sci.kernels.{kernel.name}"].fused
    operator, caught = module.CUSTOM_OP, []
    monkeypatch.setattr(module, "CUSTOM_OP", lambda *arguments: caught.append(arguments) or operator(*arguments))
    given = example(kernel)
    asking = leaves(kernel, given)
    kernel.get_implementation("tiled").run(**replaced(given, asking))
    torch.library.opcheck(
        operator, caught[0], test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_gradcheck(kernel: Kernel) -> None:
    given = widened(example(kernel))
    asking = leaves(kernel, given)

    def function(*values: torch.Tensor) -> torch.Tensor:
        return kernel.get_implementation("tiled").run(**replaced(given, dict(zip(asking, values, strict=True))))

    torch.autograd.gradcheck(function, tuple(asking.values()), fast_mode=True, nondet_tol=0.0)


@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_second_derivatives_are_refused_by_name(kernel: Kernel) -> None:
    given = example(kernel)
    asking = leaves(kernel, given)
    out = kernel.get_implementation("tiled").run(**replaced(given, asking))
    first = torch.autograd.grad(out.square().sum(), list(asking.values()), create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{kernel.name}: second derivatives need implementation='reference'"):
        torch.autograd.grad(first[0].sum(), next(iter(asking.values())))


@pytest.mark.parametrize("implementation", ON_A_CPU)
@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_under_activation_checkpointing(kernel: Kernel, implementation: str) -> None:
    given = example(kernel)
    function = fused(kernel, implementation, given)
    want = run(kernel, function, given)
    got = run(kernel, lambda **x: checkpoint(lambda: function(**x), use_reentrant=False), given)
    for name, x in want.items():
        assert torch.equal(got[name], x), name


@pytest.mark.parametrize("kernel", FUSED, ids=lambda k: k.name)
def test_nothing_is_saved_where_no_gradient_is_asked_for(kernel: Kernel) -> None:
    given = example(kernel)
    out = kernel.get_implementation("tiled").run(**given)
    assert not out.requires_grad
    with torch.no_grad():
        assert not kernel.get_implementation("tiled").run(**replaced(given, leaves(kernel, given))).requires_grad


@pytest.mark.parametrize("implementation", [None, "tiled", "reference"])
def test_attention_pair_bias_is_algorithm_24(implementation: str | None) -> None:
    """Written out by its lines: queries have a bias, gate and output have none, the pair bias is of LN(z)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    b, n, c, c_z, h, d = 2, 13, 24, 16, 3, 8
    a, z, keep = normal(b, n, c), normal(b, n, n, c_z), torch.rand(b, n, generator=generator) > 0.3
    w_q, b_q, w_k, w_v, w_g, w_o = (
        normal(h * d, c),
        normal(h * d),
        *(normal(h * d, c) for _ in range(3)),
        normal(c, h * d),
    )
    norm, w_b = (normal(c_z), normal(c_z)), normal(h, c_z)
    weights = Weights(None, (w_q, b_q), (w_k, None), (w_v, None), (w_g, None), (w_o, None))
    got = attention_pair_bias(a, z, keep, weights, (*norm, w_b), h, implementation=implementation)

    q, k, v = ((a @ w.T).view(b, n, h, d) for w in (w_q, w_k, w_v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q + b_q.view(h, d), k) / d**0.5
    scores = scores + (F.layer_norm(z, (c_z,), *norm) @ w_b.T).permute(0, 3, 1, 2)
    weight = scores.masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(-2) * torch.sigmoid(a @ w_g.T)
    torch.testing.assert_close(got, out @ w_o.T, rtol=1e-4, atol=1e-3)


def test_spans_cover_everything_once_and_evenly() -> None:
    for length, each in ((1, 1), (7, 2**20), (1000, 2**14), (1001, 2**14), (5, 2**30)):
        pieces = list(tile_slices(length, each, torch.device("cpu")))
        assert [i for p in pieces for i in range(p.start, p.stop)] == list(range(length))
        sizes = {p.stop - p.start for p in pieces}
        assert max(sizes) - min(sizes) <= 1


def peak_in_outputs(call: Callable[[], torch.Tensor]) -> float:
    """Peak memory forward and backward beyond what was there, as a multiple of the output."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    out = call()
    weight = torch.ones_like(out)
    out.backward(weight)
    peak = peak_memory_mb(lambda: call().backward(weight), torch.device("cpu"))
    assert peak is not None
    return peak / (weight.nbytes / 1e6)


def test_the_hidden_activation_never_exists_whole() -> None:
    """It would be 4 outputs, and as much in backward; output and gradient are 2."""
    x = torch.randn(384, 384, 64, requires_grad=True)
    weights = (torch.ones(64), torch.zeros(64), torch.randn(256, 64) / 8, None, torch.randn(64, 256) / 16, None)
    assert peak_in_outputs(lambda: KERNELS["transition"](x, *weights)) < 3.0


def test_the_outer_product_never_exists_whole() -> None:
    """[n, n, c·c] would be 16 outputs."""
    a = torch.randn(1, 8, 384, 16, requires_grad=True)
    mask, weight = torch.ones(1, 8, 384, dtype=torch.bool), torch.randn(16, 256)
    assert peak_in_outputs(lambda: KERNELS["outer_product_mean"](a, a, mask, weight, None)) < 4.0


@pytest.mark.nightly
@pytest.mark.parametrize("name", [one.name for one in native.ISAS])
def test_every_instruction_set_of_this_machine(name: str, tmp_path: Path) -> None:
    isa = next(one for one in native.ISAS if one.name == name)
    if not isa.needs <= native._processor_flags():
        pytest.skip(f"this processor has no {name}")
    if name == native.isa().name:
        pytest.skip("the contract's own run has it")
    if native.why_not("pointwise"):
        pytest.skip(str(native.why_not("pointwise")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_contract.py", "-k",
         "native and as_right and not evoformer"],
        cwd=ROOT, env={**os.environ, "DS4SCI_ISA": name, "DS4SCI_CACHE": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_backends_have_the_same_functions() -> None:
    names = {x for x in dir(BACKENDS["tiled"]) if not x.startswith("_") and callable(getattr(BACKENDS["tiled"], x))}
    own = {x for x in names if getattr(BACKENDS["tiled"], x).__module__ == BACKENDS["tiled"].__name__}
    for name, backend in BACKENDS.items():
        assert own <= set(dir(backend)), name
