"""What the operations do with inputs at the edge: shapes that do not fit, masks that broadcast, empty dimensions,
numbers near the end of fp32. Each public function, by every implementation that runs on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci import kernels
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import Kernel

CPU = torch.device("cpu")
FREE = {("pair_bias", "weight", 0), ("varlen_attention", "doc_spans", 0)}
"""Dimensions that follow from no other input: the number of heads, of documents."""


def made(kernel: Kernel, name: str | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    case = next(c for c in kernel.cases if name is None or c.name == name)
    return case.make(torch.Generator().manual_seed(0), dtype, CPU)


def places(given: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Every tensor and its path: argument, then places in tuples."""

    def visit(path: tuple[Any, ...], x: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        if isinstance(x, Tensor):
            yield path, x
        elif isinstance(x, tuple):
            for i, part in enumerate(x):
                yield from visit((*path, i), part)

    for name, x in given.items():
        yield from visit((name,), x)


def replaced(x: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    first, *rest = path
    if isinstance(x, dict):
        return {**x, first: replaced(x[first], tuple(rest), by)}
    parts = [replaced(part, tuple(rest), by) if i == first else part for i, part in enumerate(x)]
    return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)


def names(kernel: str) -> list[str]:
    """Implementations for a CPU."""
    return [i.name for i in KERNELS[kernel].implementations if i.name not in ("triton", "flash", "flex")]


EACH = [(kernel, name) for kernel in KERNELS for name in names(kernel)]


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda k: k.name)
def test_a_tensor_one_too_short_or_too_long_is_refused_by_name_and_shape(kernel: Kernel) -> None:
    public: Callable[..., Any] = getattr(kernels, kernel.name)
    for case in kernel.cases:
        given = made(kernel, case.name)
        first = next(iter(given))
        for path, x in places(given):
            for dim, size in enumerate(x.shape):
                follows = path[0] != first and (kernel.name, path[0], dim) not in FREE
                if kernel.name == "outer_product_mean" and path[0] == "weight" and given["bias"] is None and dim == 0:
                    follows = False
                if not follows or size == 1:
                    continue
                longer = torch.cat([x, x.narrow(dim, 0, 1)], dim)
                for wrong in (longer, *([x.narrow(dim, 0, size - 1)] if size > 2 else [])):
                    with pytest.raises(ValueError, match=r"came as|must divide") as refusal:
                        public(**replaced(given, path, wrong))
                    found = str(refusal.value)
                    assert str(tuple(wrong.shape)) in found or path[0] in ("weights", "weight_2", "k", "weight"), found


@pytest.mark.parametrize("kernel", ["gated_self_attention", "triangle_multiplication", "outer_product_mean"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool], ids=["float", "bool"])
def test_a_mask_that_broadcasts_is_the_mask_it_broadcasts_to(kernel: str, kind: torch.dtype) -> None:
    public: Callable[..., Tensor] = getattr(kernels, kernel)
    given = made(KERNELS[kernel])
    sizes = next(iter(given.values())).shape[:3]
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 1, sizes[2]), (1, sizes[1], 1), (1, 1, 1)]
    if kernel == "triangle_multiplication":
        shapes += [(1, sizes[2]), (sizes[2],)]
    for shape in shapes:
        mask = torch.rand(shape, generator=generator).add(0.5 if kind == torch.bool else 0.1).floor().to(kind)
        wide = {**given, "mask": mask.expand(sizes).contiguous()}
        for name in names(kernel):
            expected = public(**wide, implementation=name)
            found = public(**{**given, "mask": mask}, implementation=name)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(found, public(**wide, implementation="tiled"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", names("gated_self_attention"))
def test_the_gradient_of_a_mask_that_broadcasts_has_its_shape(name: str) -> None:
    given = made(KERNELS["gated_self_attention"])
    mask = torch.zeros(1, 1, given["x"].shape[2], requires_grad=True)
    grads = []
    for one in (name, "reference"):
        out = kernels.gated_self_attention(**{**given, "mask": mask}, implementation=one)
        grads.append(torch.autograd.grad(out.square().sum(), mask)[0])
    assert grads[0].shape == mask.shape
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_a_mask_of_another_batch_is_refused_by_shape() -> None:
    given = made(KERNELS["triangle_multiplication"])
    n = given["z"].shape[1]
    with pytest.raises(ValueError, match=rf"mask must be .*came as \(3, {n}, {n}\)"):
        kernels.triangle_multiplication(**{**given, "mask": torch.ones(3, n, n)})


def test_a_seed_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="came as 3"):
        kernels.shared_dropout(torch.randn(1, 2, 2, 4), 0.3, 1, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["native", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_variance_beyond_fp32_gives_nan_as_in_torch(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1e20, -2e20, 3e20, -1e20], [1.0, 2.0, 3.0, 5.0]], dtype=dtype)
    weight, bias = torch.ones(4, dtype=dtype), torch.zeros(4, dtype=dtype)
    expected = F.layer_norm(x, (4,), weight, bias)
    assert expected[0].isnan().all()
    assert expected[1].isfinite().all()
    found = kernels.layer_norm(x, weight, bias, implementation=name)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize("name", ["native", "tiled"])
def test_a_variance_of_channels_beyond_fp32_gives_nan_too(name: str) -> None:
    """The norm over channels that lie apart, of the triangular update."""
    from ds4sci.kernels.pointwise import BACKENDS

    p = torch.tensor([[1e20, 1.0], [-2e20, 2.0], [3e20, 3.0], [-1e20, 5.0]])
    y, _, rstd = BACKENDS[name].norm_columns(p, torch.ones(4), None, 1e-5)
    assert y[0].isnan().all()
    assert rstd[0].isnan()
    torch.testing.assert_close(y[1], F.layer_norm(p[:, 1], (4,)))


MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("name", names("evoformer_attention"))
@pytest.mark.parametrize("value", [MAX, 2.5e38, 1e38, 1e12, 1e9])
@pytest.mark.parametrize("as_mask", [True, False], ids=["mask", "pair bias"])
def test_a_key_with_a_huge_score_is_the_only_one(name: str, value: float, as_mask: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 2, 8, generator=generator).requires_grad_() for _ in range(3))
    added = torch.zeros(5).index_fill(0, torch.tensor(1), value)
    out, lse = kernels.evoformer_attention_lse(
        q, k, v, added.view(1, 1, 5) if as_mask else None, None if as_mask else added.view(1, 1, 1, 5),
        implementation=name,
    )  # fmt: skip
    torch.testing.assert_close(out, v[:, :, 1:2].expand_as(out))
    torch.testing.assert_close(lse, torch.full_like(lse, value))
    grad = torch.autograd.grad(out.sum(), v)[0]
    assert grad[0, 0, 1].sub(5).abs().max() < 1e-5
    assert grad.sum() == pytest.approx(5 * 16)


@pytest.mark.parametrize("name", names("evoformer_attention"))
def test_plus_infinity_stays_nan(name: str) -> None:
    q = torch.ones(1, 1, 3, 1, 8)
    assert kernels.evoformer_attention(q, q, q, torch.tensor([[[0, math.inf, 0]]]), implementation=name).isnan().all()


EMPTY: dict[str, list[tuple[tuple[int, ...], ...]]] = {
    "layer_norm": [((0, 3),), ((3, 0),)],
    "transition": [((0, 3),), ((3, 0),)],
    "pair_bias": [((0, 3, 3),), ((1, 0, 3),), ((1, 3, 0),)],
    "outer_product_mean": [((0, 3, 4),), ((1, 0, 4),), ((1, 3, 0),), ((1, 0, 0),)],
    "triangle_multiplication": [((0, 3, 3),), ((1, 0, 0),)],
    "gated_self_attention": [((0, 3, 4),), ((1, 0, 4),), ((1, 3, 0),)],
    "shared_dropout": [((0, 3, 3),), ((1, 0, 0),)],
    "evoformer_attention": [((0, 3, 4, 2), (0, 3, 4, 2)), ((1, 0, 4, 2),) * 2, ((1, 3, 0, 2),) * 2,
                            ((1, 3, 4, 2), (1, 3, 0, 2)), ((1, 3, 0, 2), (1, 3, 4, 2))],
    "varlen_attention": [((0, 2),)],
}  # fmt: skip
"""Shapes without the channels; of q and of k for the attention."""


def empty(kernel: str, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    c = 8
    x = torch.randn(*shapes[0], c)
    norm = torch.ones(c), torch.zeros(c)
    square = torch.eye(c), torch.zeros(c)
    if kernel == "layer_norm":
        return {"x": x, "weight": norm[0], "bias": norm[1]}
    if kernel == "transition":
        return {
            "x": x, "norm_weight": norm[0], "norm_bias": norm[1], "weight_1": torch.ones(16, c),
            "bias_1": torch.ones(16), "weight_2": torch.ones(c, 16), "bias_2": torch.ones(c),
        }  # fmt: skip
    if kernel == "pair_bias":
        return {"z": x, "norm_weight": norm[0], "norm_bias": norm[1], "weight": torch.ones(2, c)}
    if kernel == "outer_product_mean":
        return {
            "a": x,
            "b": x.clone(),
            "mask": torch.ones(shapes[0]),
            "weight": torch.ones(3, c * c),
            "bias": torch.ones(3),
        }
    if kernel == "triangle_multiplication":
        from ds4sci.kernels.triangle_multiplication import Weights as Triangle

        both = Triangle(norm, square, square, square, square, norm, square, square)
        return {"z": x, "mask": torch.ones(shapes[0]), "weights": both, "direction": "outgoing"}
    if kernel == "gated_self_attention":
        from ds4sci.kernels.gated_self_attention import Weights as Gated

        pairs = torch.zeros(1, 2, shapes[0][2], shapes[0][2])
        weights = Gated(norm, square, square, square, square, square)
        return {"x": x, "mask": torch.zeros(shapes[0]), "pair_bias": pairs, "weights": weights, "heads": 2}
    if kernel == "shared_dropout":
        return {"x": x, "p": 0.25, "axis": 1, "seed": torch.tensor(3)}
    if kernel == "varlen_attention":
        return {"q": x, "k": x.clone(), "v": x.clone(), "doc_spans": torch.empty(0, 2, dtype=torch.int64)}
    k = torch.randn(*shapes[1], c)
    return {
        "q": x,
        "k": k,
        "v": k.clone(),
        "mask": torch.zeros(shapes[1][:3]),
        "pair_bias": torch.zeros(1, 2, shapes[0][2], shapes[1][2]),
    }


@pytest.mark.parametrize(("kernel", "name"), EACH)
def test_empty_dimensions_give_empty_or_what_the_reference_gives(kernel: str, name: str) -> None:
    assert set(EMPTY) == set(KERNELS)
    public: Callable[..., Tensor] = getattr(kernels, kernel)
    for shapes in EMPTY[kernel]:
        given = empty(kernel, shapes)
        floats = ((p, x) for p, x in places(given) if x.is_floating_point())
        leaves = {p: x.detach().clone().requires_grad_(p[0] != "mask") for p, x in floats}
        for path, x in leaves.items():
            given = replaced(given, path, x)
        out, expected = public(**given, implementation=name), public(**given, implementation="reference")
        torch.testing.assert_close(out, expected)
        wanted = [x for x in leaves.values() if x.requires_grad]
        grads = [
            torch.autograd.grad(o.sum(), wanted, allow_unused=True, materialize_grads=True) for o in (out, expected)
        ]
        torch.testing.assert_close(*grads)
