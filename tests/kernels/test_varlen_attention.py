"""varlen_attention: the kernel contract, isolation of documents, donated tensors, memory, refusals, builds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.kernels import native, varlen_attention
from ds4sci.kernels.custom_op import is_non_overlapping
from ds4sci.kernels.varlen_attention import KERNEL, flash, flex
from ds4sci.kernels.varlen_attention import native as native_attention
from ds4sci.kernels.varlen_attention.cases import CASES
from ds4sci.kernels.varlen_attention.doc_spans import document_bounds, document_ids, padding_bounds
from tests.support.kernel_contract import GrowthContract, ThreadContract
from tests.support.kernel_runs import least_peak_bytes, runnable_names

ROOT = Path(__file__).resolve().parents[2]
LINEAR = runnable_names(KERNEL, ("native", "sdpa"))
CAUSAL_AND_BIDIRECTIONAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(
        dtype
    )


def example(t: int = 40, h: int = 4, g: int = 2, d: int = 16, **other: Any) -> dict[str, Any]:
    """Documents with padding before, between and after them."""
    given: dict[str, Any] = {
        name: normal(t, n, d, seed=i, **other) for i, (name, n) in enumerate(zip("qkv", (h, g, g), strict=True))
    }
    return given | {"doc_spans": torch.tensor([[1, 9], [12, 13], [13, t - 2]])}


class TestContract(ThreadContract, GrowthContract):
    kernel = KERNEL

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        return [{name: torch.randn(0, 2, 8) for name in "qkv"} | {"doc_spans": torch.empty(0, 2, dtype=torch.int64)}]


def with_gradients(
    function: Callable[..., torch.Tensor], given: dict[str, Any], weight: torch.Tensor
) -> list[torch.Tensor]:
    leaves = {name: given[name].detach().requires_grad_() for name in "qkv"}
    out = function(**(given | leaves))
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weight)]


@CAUSAL_AND_BIDIRECTIONAL
@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
def test_gradcheck(implementation: str, causal: bool) -> None:
    given = example(t=12, h=2, g=1, d=3, dtype=torch.float64)
    given["doc_spans"] = torch.tensor([[1, 4], [6, 11]])

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return varlen_attention(q, k, v, given["doc_spans"], causal=causal, implementation=implementation)

    tensors = [given[name].requires_grad_() for name in "qkv"]
    assert torch.autograd.gradcheck(function, tensors)
    if implementation == "reference":
        assert torch.autograd.gradgradcheck(function, tensors)


@CAUSAL_AND_BIDIRECTIONAL
@pytest.mark.parametrize("implementation", [*LINEAR, "reference"])
def test_equals_sdpa_of_each_document(implementation: str, causal: bool) -> None:
    given = example()
    weight = normal(40, 4, 16, seed=9)
    got = with_gradients(lambda **x: varlen_attention(**x, causal=causal, implementation=implementation), given, weight)
    want = [torch.zeros_like(x) for x in got]
    for start, stop in given["doc_spans"].tolist():
        own = {name: given[name][start:stop].transpose(0, 1)[None] for name in "qkv"}
        parts = with_gradients(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
            own, weight[start:stop].transpose(0, 1)[None],
        )  # fmt: skip
        for whole, part in zip(want, parts, strict=True):
            whole[start:stop] = part[0].transpose(0, 1)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@CAUSAL_AND_BIDIRECTIONAL
@pytest.mark.parametrize("implementation", LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_outside_a_document_change_no_bit_of_it(implementation: str, causal: bool, dtype: torch.dtype) -> None:
    """Padding may be NaN; in a causal document later tokens do not change earlier ones."""
    given = example(t=300, dtype=dtype)
    weight = normal(300, 4, 16, seed=9, dtype=dtype)
    function = lambda **x: varlen_attention(**x, causal=causal, implementation=implementation)  # noqa: E731
    before = with_gradients(function, given, weight)
    changed = {name: given[name].clone() for name in "qkv"} | {"doc_spans": given["doc_spans"]}
    other_weight = weight.clone()
    padding = document_ids(given["doc_spans"], 300, torch.device("cpu")) < 0
    for x in (*(changed[name] for name in "qkv"), other_weight):
        x[padding] = torch.nan
        x[1:9] *= -2
        if causal:
            x[150:298] += 1
    after = with_gradients(function, changed, other_weight)
    for one, other in zip(before, after, strict=True):
        assert (other[padding] == 0).all()
        assert torch.equal(one[12:13], other[12:13])
        if not causal:
            assert torch.equal(one[13:298], other[13:298])
    if causal:
        assert torch.equal(before[0][13:150], after[0][13:150])
        assert not torch.equal(before[0][150:298], after[0][150:298])


@pytest.mark.parametrize("implementation", LINEAR)
def test_grouped_heads_equal_repeated_keys(implementation: str) -> None:
    given = example()
    weight = normal(40, 4, 16, seed=9)
    function = lambda **x: varlen_attention(**x, causal=True, implementation=implementation)  # noqa: E731
    got = with_gradients(function, given, weight)
    repeated = given | {name: given[name].repeat_interleave(2, 1) for name in "kv"}
    out, dq, *rest = with_gradients(function, repeated, weight)
    want = [out, dq, *(x.unflatten(1, (2, 2)).sum(2) for x in rest)]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@CAUSAL_AND_BIDIRECTIONAL
def test_a_document_split_into_tasks(causal: bool) -> None:
    """Forward splits documents after 4,096 queries."""
    given = example(t=4205, h=2, g=1, d=8)
    given["doc_spans"] = torch.tensor([[3, 4200]])
    weight = normal(4205, 2, 8, seed=9)
    got, want = (
        with_gradients(lambda name=name, **x: varlen_attention(**x, causal=causal, implementation=name), given, weight)
        for name in ("native", "sdpa")
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", [*LINEAR, "reference"])
def test_without_documents_everything_is_padding(implementation: str) -> None:
    given = example()
    for doc_spans in ([], [[5, 5]]):
        given["doc_spans"] = torch.tensor(doc_spans, dtype=torch.int64).reshape(-1, 2)
        function = lambda **x: varlen_attention(**x, implementation=implementation)  # noqa: E731
        for got in with_gradients(function, given, normal(40, 4, 16)):
            assert (got == 0).all()


@pytest.mark.parametrize("implementation", LINEAR)
def test_memory_grows_linearly(implementation: str) -> None:
    """Scores of 4 heads and 8,192 tokens would be 1 GB."""
    peaks = []
    for t in (4096, 8192):
        given = {name: normal(t, 4, 16, seed=i) for i, name in enumerate("qkv")} | {"doc_spans": torch.tensor([[0, t]])}
        weight = torch.ones(t, 4, 16)
        function = lambda **x: varlen_attention(**x, causal=True, implementation=implementation)  # noqa: E731
        with_gradients(function, {**given, "doc_spans": torch.tensor([[0, 40]])}, weight)
        # the output and three gradients, at least: in memory that the heap already has, less is measured
        peaks.append(max(least_peak_bytes(lambda: with_gradients(function, given, weight)), 4 * weight.nbytes))  # noqa: B023
    assert peaks[1] < 3.2 * peaks[0]  # 2 for the tensors, 4 for anything that grows as t²; plus the heap
    assert peaks[1] < 20 * weight.nbytes


@pytest.mark.nightly
@pytest.mark.parametrize("implementation", LINEAR)
def test_a_document_of_65536_tokens(implementation: str) -> None:
    t = 65536
    given = {name: normal(t, 1, 16, seed=i) for i, name in enumerate("qkv")} | {"doc_spans": torch.tensor([[0, t]])}
    out, *grads = with_gradients(
        lambda **x: varlen_attention(**x, causal=True, implementation=implementation), given, torch.ones(t, 1, 16)
    )
    few = torch.tensor([0, 1, 4095, 4096, 40000, t - 1])
    scores = torch.einsum("qd,kd->qk", given["q"][few, 0].double(), given["k"][:, 0].double()) / 4
    scores[torch.arange(t)[None] > few[:, None]] = -torch.inf
    torch.testing.assert_close(
        out[few, 0], (scores.softmax(-1) @ given["v"][:, 0].double()).float(), rtol=1e-4, atol=1e-5
    )
    assert all(x.isfinite().all() for x in grads)


def test_second_derivatives_are_refused_by_name() -> None:
    given = example()
    q = given.pop("q").requires_grad_()
    out = varlen_attention(q, **given, implementation="native")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="attention: second derivatives need implementation='reference'"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    given = example(dtype=dtype)
    tensors = [given[name].requires_grad_() for name in "qkv"]
    torch.library.opcheck(native_attention.CUSTOM_OP, (*tensors, given["doc_spans"], True, 0.3, False))
    fused = normal(40, 8, 16, dtype=dtype).requires_grad_()  # views of one tensor, whose strides the gradients have
    torch.library.opcheck(
        native_attention.CUSTOM_OP, (*fused.split([4, 2, 2], 1), given["doc_spans"], False, 0.3, False)
    )


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_compiles_without_graph_breaks(implementation: str) -> None:
    given = example()

    def function(**x: torch.Tensor) -> torch.Tensor:
        return varlen_attention(**x, causal=True, implementation=implementation).square()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    weight = normal(40, 4, 16, seed=9)
    for one, other in zip(*(with_gradients(f, given, weight) for f in (compiled, function)), strict=True):
        torch.testing.assert_close(one, other)


def test_activation_checkpointing() -> None:
    given = example()
    function = lambda **x: varlen_attention(**x, implementation="native")  # noqa: E731
    weight = normal(40, 4, 16, seed=9)
    again = with_gradients(lambda **x: checkpoint(lambda: function(**x), use_reentrant=False), given, weight)
    for one, other in zip(with_gradients(function, given, weight), again, strict=True):
        assert torch.equal(one, other)


def recomputed(case: dict[str, Any], donated: bool, keep: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[bool]]:
    """(gradients of twice q, k and v, whether each overwrites the recomputed tensor); computed twice, and equal.

    keep  receives the tensors that attention reads in the recomputation
    """
    leaves = [case[name].detach().requires_grad_() for name in "qkv"]
    made: list[list[int]] = []
    landed: list[int] = []

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        double = [x * 2 for x in inputs]
        made.append([x.data_ptr() for x in double])
        for x in double:
            x.register_hook(lambda grad: landed.append(grad.data_ptr()))
        if made[1:] and not donated:
            keep.extend(double)
        return varlen_attention(
            *double, case["doc_spans"], causal=case["causal"], scale=case["scale"], donated=donated,
            implementation="native",
        )  # fmt: skip

    out = checkpoint(function, *leaves, use_reentrant=False)
    weight = normal(*out.shape, seed=9, dtype=out.dtype)
    first = torch.autograd.grad(out, leaves, weight, retain_graph=True)
    overwrites = [pointer in made[1] for pointer in landed]
    second = torch.autograd.grad(out, leaves, weight)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    return list(first), overwrites


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_overwrite_donated_tensors_only(case: Any, dtype: torch.dtype) -> None:
    inputs = case.make(torch.Generator().manual_seed(0), dtype, torch.device("cpu"))
    leaves = {name: inputs[name].detach().requires_grad_() for name in "qkv"}
    out = varlen_attention(**(inputs | {name: x * 2 for name, x in leaves.items()}), implementation="native")
    expected = torch.autograd.grad(out, list(leaves.values()), normal(*out.shape, seed=9, dtype=dtype))
    donated, overwrites = recomputed(inputs, True, [])
    assert overwrites == [True] * 3
    held: list[torch.Tensor] = []
    separate, overwrites = recomputed(inputs, False, held)
    assert overwrites == [False] * 3
    for name, one, other, want, kept in zip("qkv", donated, separate, expected, held[:3], strict=True):
        assert torch.equal(one, want), name
        assert torch.equal(other, want), name
        assert torch.equal(kept, inputs[name] * 2), name


def test_donated_tensors_are_kept_for_second_derivatives_and_where_elements_overlap() -> None:
    inputs = example()
    q, k, v = (inputs[name] * 2 for name in "qkv")
    k = k[:1].expand_as(k)  # one key for all tokens
    before = [x.clone() for x in (q, k, v)]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = varlen_attention(*leaves, inputs["doc_spans"], donated=True, implementation="native")
    first = torch.autograd.grad(out.sum(), leaves, create_graph=True)
    for x, unchanged in zip(leaves, before, strict=True):
        assert torch.equal(x, unchanged)
    out = varlen_attention(*leaves, inputs["doc_spans"], donated=True, implementation="native")
    second = torch.autograd.grad(out.sum(), leaves)
    assert torch.equal(k, before[1])
    assert torch.equal(q, second[0])  # overwritten
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("keeps", ["leaves", "products", "hooks", "host", "reentrant"])
def test_without_donation_nothing_is_overwritten(keeps: str) -> None:
    """Inputs that a retained graph, saved-tensor hooks or reentrant checkpointing still hold."""
    given = example()
    leaves = [given[name].clone().requires_grad_() for name in "qkv"]
    made: list[torch.Tensor] = []

    def function(*x: torch.Tensor) -> torch.Tensor:
        made[:] = x if keeps == "leaves" else [one * 2 for one in x]
        return varlen_attention(*made, given["doc_spans"], implementation="native")

    hooks: Any = contextlib.nullcontext()
    if keeps == "hooks":
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    elif keeps == "host":
        hooks = torch.autograd.graph.save_on_cpu()
    with hooks:
        out = checkpoint(function, *leaves, use_reentrant=True) if keeps == "reentrant" else function(*leaves)
    before = [x.detach().clone() for x in made]
    if keeps in ("hooks", "host"):
        made.clear()  # only the hooks hold them
    weight = normal(*out.shape, seed=9)
    if keeps == "reentrant":
        out.backward(weight)
        pairs = zip(made, [given[name] * 2 for name in "qkv"], strict=True)
    else:
        first = torch.autograd.grad(out, leaves, weight, retain_graph=True)
        second = torch.autograd.grad(out, leaves, weight)
        pairs = zip([*first, *made], [*second, *before[: len(made)]], strict=True)
    for one, other in pairs:
        assert torch.equal(one, other)


def test_overlapping_elements_are_detected() -> None:
    x = torch.zeros(6, 4)
    assert is_non_overlapping(x)
    assert is_non_overlapping(x.t()[:, 1:])
    assert is_non_overlapping(x[:, :1])
    assert not is_non_overlapping(x[:1].expand(6, 4))
    assert not is_non_overlapping(x.view(-1).unfold(0, 3, 1))


def test_strided_channels() -> None:
    """Channels with stride 1 are read in place; others are copied, with the right gradient."""
    given = example()
    strided = given | {name: given[name].transpose(1, 2).contiguous().transpose(1, 2) for name in "qkv"}
    weight = normal(40, 16, 4, seed=9).transpose(1, 2)
    function = lambda **x: varlen_attention(**x, implementation="native")  # noqa: E731
    for one, other in zip(*(with_gradients(function, x, weight) for x in (given, strided)), strict=True):
        assert torch.equal(one, other)


def test_flex_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, as within a compiled graph: checks mask, layout and grouped heads, not the GPU kernel."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    given = example(t=300)
    for causal in (False, True):
        got = flex.run(**given, causal=causal)
        torch.testing.assert_close(got, varlen_attention(**given, causal=causal, implementation="reference"))


def test_flash_gets_documents_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for flash_attn's documented interface."""

    def varlen(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int, max_seqlen_k: int, *, softmax_scale: float | None, causal: bool, deterministic: bool,
    ) -> torch.Tensor:  # fmt: skip
        assert cu_seqlens_q.dtype == torch.int32
        assert int(cu_seqlens_q[-1]) == q.shape[0]
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        doc_spans = torch.stack([cu_seqlens_k[:-1], cu_seqlens_k[1:]], 1).long()
        return varlen_attention(q, k, v, doc_spans, causal=causal, scale=softmax_scale, implementation="reference")

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    whole = example()
    whole["doc_spans"] = torch.tensor([[0, 30], [30, 40]])
    weight = normal(40, 4, 16, seed=9)
    for given in (example(), whole):
        got = with_gradients(lambda **x: flash.run(**x, causal=True), given, weight)
        want = with_gradients(lambda **x: varlen_attention(**x, causal=True, implementation="reference"), given, weight)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)


def test_refusals_have_reasons() -> None:
    given = example(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"flash.*runs on a GPU, not on cpu"):
        varlen_attention(**given, implementation="flash")
    with pytest.raises(ValueError, match=r"flex.*only on GPUs, not on cpu"):
        varlen_attention(**given, implementation="flex")
    with pytest.raises(ValueError, match=r"native.*not float64"):
        varlen_attention(**given, implementation="native")
    elsewhere = {name: given[name].to("meta", torch.bfloat16) for name in "qkv"}
    assert "not on meta" in str(native_attention.why_not(**elsewhere, doc_spans=given["doc_spans"]))


def test_wrong_shapes_are_refused_by_name() -> None:
    given = example()
    for name, wrong, words in (
        ("q", normal(1, 40, 4, 16), r"q must be \[t, h, d\]"),
        ("q", normal(40, 5, 16), "must divide that of q; got 2 and 5"),
        ("v", normal(40, 2, 8), r"v must be \(40, 2, 16\)"),
        ("k", normal(40, 2, 16).double(), "k must be torch.float32"),
        ("doc_spans", torch.tensor([0, 40]), r"doc_spans must be \[m, 2\]"),
        ("doc_spans", torch.tensor([[0, 40]], dtype=torch.int32), "int64"),
    ):
        with pytest.raises(ValueError, match=words):
            varlen_attention(**(given | {name: wrong}))


@pytest.mark.parametrize("implementation", [*LINEAR, "reference"])
def test_wrong_spans_are_named_by_document(implementation: str) -> None:
    given = example()
    for doc_spans, words in (
        ([[0, 9], [8, 20]], "document 1 is 8 to 20, and may not begin before 9"),
        ([[0, 9], [9, 41]], "within the 40 tokens of q; document 1 is 9 to 41"),
        ([[-1, 9]], "document 0 is -1 to 9"),
        ([[5, 9], [20, 10]], "document 1 is 20 to 10"),
    ):
        given["doc_spans"] = torch.tensor(doc_spans)
        with pytest.raises(ValueError, match=words):
            varlen_attention(**given, implementation=implementation)


def test_padding_bounds() -> None:
    assert padding_bounds(torch.tensor([[1, 9], [12, 13], [13, 15]]), 20) == [(0, 1), (9, 12), (15, 20)]
    assert padding_bounds(torch.tensor([[0, 20]]), 20) == []
    assert padding_bounds(torch.zeros(0, 2, dtype=torch.int64), 3) == [(0, 3)]


def test_document_ids_and_bounds() -> None:
    doc_spans = torch.tensor([[1, 3], [3, 3], [3, 4], [6, 7]])
    assert document_ids(doc_spans, 8, doc_spans.device).tolist() == [-1, 0, 0, 2, -1, -1, 3, -1]
    assert document_bounds(doc_spans, 8) == [(1, 3), (3, 4), (6, 7)]


OTHER_ISAS = [
    one.name for one in native.ISAS if one.needs <= native._processor_flags() and one.name != native.isa().name
]
"""Instruction sets of this machine that the other tests do not use."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_ISAS)
def test_every_instruction_set_of_this_machine(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/test_varlen_attention.py",
         "-k", "native and test_accuracy and not float16"],
        cwd=ROOT, env={**os.environ, "DS4SCI_ISA": name, "DS4SCI_CACHE": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
