"""Functions of Taylor series in the C++ of ``kernels/taylor_series``: the sums of ``physics.taylor`` in one pass.

Every element passes through all products while they are in the nearest cache; fp32 and fp64 on a CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds4sci.kernels import native

NAME = "taylor_series"
_COUNTS = ("elements", "coefficients", "products", "groups", "terms", "pairs")
_ARRAYS = ("product", "group", "term", "pair")


class Product(ctypes.Structure):
    """``ds4sci::Product`` of params.h, as all structs here."""

    _fields_ = [("left", ctypes.c_int64), ("right", ctypes.c_int64)]


class Group(ctypes.Structure):
    """f⁽ᵏ⁾ · Σ over a range of terms."""

    _fields_ = [(name, ctypes.c_int64) for name in ("out", "derivative", "begin", "end")]


class Term(ctypes.Structure):
    """Factor and position of a monomial."""

    _fields_ = [("monomial", ctypes.c_int64), ("factor", ctypes.c_double)]


class Pair(ctypes.Structure):
    """Positions γ, α, β with α + β = γ."""

    _fields_ = [(name, ctypes.c_int64) for name in ("sum", "first", "second")]


class Params(ctypes.Structure):
    """All arguments."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("threads", "is_double", *_COUNTS)),
        *((name, ctypes.c_void_p) for name in ("gomp_parallel", *_ARRAYS, "u", "derivative", "grad", "out")),
    ]


_STRUCTS = (Product, Group, Term, Pair, Params)


@dataclass(frozen=True)
class Sums:
    """The sums of a set of multi-indices, as arrays of the structs above.

    products  monomials: positions of two factors, of which the left one may be an earlier monomial
    groups    (γ, k, terms) with f(u)_γ = Σₖ f⁽ᵏ⁾ · Σ factor · monomial; terms are (position, factor)
    pairs     (γ, α, β)
    """

    coefficients: int
    degree: int
    product: ctypes.Array[Product]
    group: ctypes.Array[Group]
    term: ctypes.Array[Term]
    pair: ctypes.Array[Pair]

    @staticmethod
    def make(
        coefficients: int, products: Sequence[tuple[int, int]],
        groups: Sequence[tuple[int, int, Sequence[tuple[int, float]]]], pairs: Sequence[tuple[int, int, int]],
    ) -> Sums:  # fmt: skip
        terms: list[tuple[int, float]] = []
        bounds = []
        for out, k, own in groups:
            bounds.append((out, k, len(terms), len(terms) + len(own)))
            terms += own
        degree = max((k for _, k, _ in groups), default=0)
        arrays = _array(Product, products), _array(Group, bounds), _array(Term, terms), _array(Pair, pairs)
        return Sums(coefficients, degree, *arrays)


def _array(kind: type[ctypes.Structure], rows: Sequence[Sequence[float]]) -> ctypes.Array:
    return (kind * len(rows))(*(kind(*row) for row in rows))


def serves(u: Tensor) -> bool:
    """Whether the C++ here computes functions of ``u``."""
    known = u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64)
    return known and native.why_not(NAME, *_STRUCTS) is None


def compose(u: Tensor, derivatives: Sequence[Tensor], sums: Sums) -> Tensor:
    """The series of f(u), [k, …], from f(u₀), f′(u₀), … up to the degree of the series.

    Raises ValueError for another number of derivatives, and MemoryError if there is none for the monomials of a chunk.
    """
    return _run(u, derivatives, sums, None)


def compose_backward(grad: Tensor, u: Tensor, derivatives: Sequence[Tensor], sums: Sums) -> Tensor:
    """The gradient of u, from ``grad``, that of ``compose``, and one derivative more."""
    return _run(u, derivatives, sums, grad)


def _run(u: Tensor, derivatives: Sequence[Tensor], sums: Sums, grad: Tensor | None) -> Tensor:
    u = u.contiguous()
    expected = sums.degree + (1 if grad is None else 2)
    if len(derivatives) != expected:
        raise ValueError(f"Taylor series: {len(derivatives)} derivatives; expected {expected}")
    out = torch.empty_like(u)
    kept = [x.contiguous() for x in derivatives]
    grad = None if grad is None else grad.contiguous()
    pointers = (ctypes.c_void_p * len(kept))(*(x.data_ptr() for x in kept))
    arrays = [getattr(sums, name) for name in _ARRAYS]
    params = Params(
        max(1, torch.get_num_threads()), u.dtype == torch.float64, u[0].numel(), sums.coefficients,
        *map(len, arrays), native.gomp_parallel(),
        *map(ctypes.addressof, arrays), u.data_ptr(), ctypes.addressof(pointers),
        None if grad is None else grad.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    if getattr(native.load(NAME, *_STRUCTS), f"ds4sci_{NAME}_{native.isa().name}")(ctypes.byref(params)):
        raise MemoryError("Taylor series: no memory for a chunk of monomials; use fewer threads")
    return out
