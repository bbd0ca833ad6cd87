"""Tensor that carries its Taylor series in the coordinates through the operations of a network.

A network that is called with ``TaylorTensor`` points returns the series of its output: each torch function has a rule
(``RULES``). A function without a rule raises ``NoRule``; nothing is computed without its derivatives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ds4sci.physics import taylor
from ds4sci.physics.normalization import layer_norm
from ds4sci.physics.taylor import Indices


class NoRule(NotImplementedError):
    """A torch function has no rule for series."""


class TaylorTensor(Tensor):
    """A value and its Taylor coefficients, ``coefficients`` [k, *shape], in the order of ``index_set``.

    Only the coefficients are part of torch's graph. Series are made and used under one grad mode: a function that
    switches gradients off, such as a ``torch.autograd.Function``, would return a series without a graph.
    """

    coefficients: Tensor
    index_set: Indices
    grad_mode: bool

    @staticmethod
    def __new__(cls, coefficients: Tensor, indices: Indices) -> TaylorTensor:
        made: TaylorTensor = Tensor._make_wrapper_subclass(
            cls, coefficients.shape[1:], dtype=coefficients.dtype, device=coefficients.device
        )
        made.coefficients, made.index_set, made.grad_mode = coefficients, indices, torch.is_grad_enabled()
        return made

    @staticmethod
    def of_points(points: Tensor, indices: Indices) -> TaylorTensor:
        """The coordinates ``points`` [n, d] as series: the derivative of a coordinate by itself is 1."""
        coefficients = points.new_zeros(len(indices.orders), *points.shape)
        coefficients[0] = points
        for order, place in indices.position.items():
            if sum(order) == 1:
                coefficients[place, :, order.index(1)] = 1.0
        return TaylorTensor(coefficients, indices)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property
            name = func.__self__.__name__
        elif name.startswith("__") and name.endswith("__"):
            name = name[2:-2]
        if name in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        rule = RULES.get(name)
        if rule is None:
            raise NoRule(f"torch function {name!r} has no rule for Taylor series")
        return rule(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NoRule(f"operator {func} has no rule for Taylor series")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"TaylorTensor({list(self.shape)}, orders {list(self.index_set.orders)})"


METADATA = frozenset(
    {
        "shape", "dtype", "device", "ndim", "dim", "size", "numel", "len", "layout", "is_floating_point", "is_complex",
        "is_cuda", "is_cpu", "is_sparse", "is_quantized", "requires_grad", "element_size", "hash",
    }
)  # fmt: skip
"""Functions and properties that need no values."""


def _series(x: TaylorTensor) -> tuple[Tensor, Indices]:
    if torch.is_grad_enabled() != x.grad_mode:
        raise NoRule("gradients are switched off inside the network, by torch.no_grad or a torch.autograd.Function")
    return x.coefficients, x.index_set


def _is_series(x: Any) -> bool:
    return isinstance(x, TaylorTensor)


def _align(coefficients: Tensor, dims: int) -> Tensor:
    """Coefficients [k, …] with ones after k, so that the value has at least ``dims`` dimensions."""
    missing = max(0, dims - (coefficients.dim() - 1))
    return coefficients.reshape(len(coefficients), *[1] * missing, *coefficients.shape[1:]) if missing else coefficients


def _dims(x: Any) -> int:
    return x.dim() if isinstance(x, Tensor) else 0


def _axis(dim: int) -> int:
    return dim + 1 if dim >= 0 else dim


def _axes(dims: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if dims is None:
        return tuple(range(1, count + 1))
    return tuple(map(_axis, (dims,) if isinstance(dims, int) else dims))


def _sizes(given: Sequence[Any]) -> tuple[int, ...]:
    """Sizes or axes given as arguments or as one sequence."""
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else tuple(given)


def _add(a: Any, b: Any, *, alpha: float = 1.0, sign: float = 1.0) -> TaylorTensor:
    """a + alpha · b, or ``sign`` · a + alpha · b."""
    dims = max(_dims(a), _dims(b))
    if _is_series(a) and _is_series(b):
        (u, indices), (v, _) = _series(a), _series(b)
        u, v = _align(u, dims), _align(v, dims)
        return TaylorTensor(torch.add(u if sign == 1 else sign * u, v, alpha=alpha), indices)
    series, constant, factor = (a, b, sign) if _is_series(a) else (b, a, alpha)
    u, indices = _series(series)
    u = _align(u if factor == 1 else factor * u, dims)
    value = torch.add(u[0], constant, alpha=alpha) if series is a else torch.add(u[0], constant, alpha=sign)
    rest = u[1:].expand(len(u) - 1, *value.shape)
    return TaylorTensor(torch.cat([value.unsqueeze(0), rest]), indices)


def _multiply(a: Any, b: Any) -> TaylorTensor:
    return _bilinear(torch.mul, a, b)


def _bilinear(function: Callable[[Any, Any], Tensor], a: Any, b: Any) -> TaylorTensor:
    """A function linear in both arguments, which broadcasts over leading dimensions."""
    dims = max(_dims(a), _dims(b))
    if _is_series(a) and _is_series(b):
        (u, indices), (v, _) = _series(a), _series(b)
        return TaylorTensor(taylor.bilinear(function, u, v, indices), indices)
    if _is_series(a):
        u, indices = _series(a)
        return TaylorTensor(function(_align(u, dims), b), indices)
    v, indices = _series(b)
    return TaylorTensor(function(a, _align(v, dims)), indices)


def _matmul(a: Any, b: Any) -> TaylorTensor:
    if _dims(a) < 2 or _dims(b) < 2:
        raise NoRule("matmul of a vector has no rule for Taylor series")
    return _bilinear(torch.matmul, a, b)


def _linear(x: Any, weight: Any, bias: Any = None) -> TaylorTensor:
    if _is_series(weight) or _is_series(bias):
        raise NoRule("a linear layer whose weight depends on the points has no rule for Taylor series")
    u, indices = _series(x)
    return TaylorTensor(taylor.linear(u, weight, bias), indices)


def _einsum(pattern: str, *operands: Any) -> TaylorTensor:
    if len(operands) == 1 and not isinstance(operands[0], Tensor):
        operands = tuple(operands[0])
    ours = [i for i, x in enumerate(operands) if _is_series(x)]
    if len(ours) == 2 == len(operands):
        return _bilinear(functools.partial(torch.einsum, pattern), *operands)
    inputs, arrow, output = pattern.replace(" ", "").partition("->")
    letter = next(c for c in "ZYXWVUTSRQ" if c not in pattern)
    if len(ours) != 1 or not arrow:
        raise NoRule(f"einsum {pattern!r} has no rule for Taylor series: one operand may depend on the points")
    parts = inputs.split(",")
    parts[ours[0]] = letter + parts[ours[0]]
    u, indices = _series(operands[ours[0]])
    plain = [u if i == ours[0] else x for i, x in enumerate(operands)]
    return TaylorTensor(torch.einsum(f"{','.join(parts)}->{letter}{output}", *plain), indices)


def _function(name: str, x: Any, *more: Any) -> TaylorTensor:
    u, indices = _series(x)
    return TaylorTensor(taylor.function(name, u, indices, *more), indices)


def _activation(name: str) -> Callable[..., TaylorTensor]:
    def rule(x: Any, inplace: bool = False) -> TaylorTensor:
        if inplace:
            raise NoRule(f"{name} in place has no rule for Taylor series")
        return _function(name, x)

    return rule


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return _function("gelu", x)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + torch.tanh(inner))


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if beta != 1.0:
        return _softplus(beta * x) / beta
    return _function("softplus", x)


def _pow(x: Any, exponent: Any) -> TaylorTensor:
    if _is_series(exponent) or isinstance(exponent, Tensor):
        raise NoRule("a power whose exponent is a tensor has no rule for Taylor series")
    return _function("pow", x, float(exponent))


def _rpow(x: Any, base: float) -> Any:
    return torch.exp(math.log(base) * x)


def _divide(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise NoRule("division with rounding has no rule for Taylor series")
    if _is_series(b):
        return a * _pow(b, -1.0)
    u, indices = _series(a)
    return TaylorTensor(_align(u, max(_dims(a), _dims(b))) / b, indices)


def _where(condition: Tensor, a: Any, b: Any) -> TaylorTensor:
    u, indices = _series(a if _is_series(a) else b)
    dims = max(_dims(condition), _dims(a), _dims(b))

    def coefficients_of(x: Any) -> Tensor:
        if _is_series(x):
            return _align(_series(x)[0], dims)
        return _align(_constant(torch.as_tensor(x, dtype=u.dtype, device=u.device), indices), dims)

    return TaylorTensor(torch.where(condition, coefficients_of(a), coefficients_of(b)), indices)


def _relu(x: Any, inplace: bool = False) -> TaylorTensor:
    if inplace:
        raise NoRule("relu in place has no rule for Taylor series")
    return _where(_series(x)[0][0] > 0, x, 0.0)


def _softmax(x: Any, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if dtype not in (None, x.dtype):
        raise NoRule("softmax in another dtype has no rule for Taylor series")
    exponential = torch.exp(x - _series(x)[0][0].detach().amax(dim, keepdim=True))
    return exponential / exponential.sum(dim, keepdim=True)


def _batch_norm(
    x: Any, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training or mean is None or variance is None:
        raise NoRule("batch normalization by the statistics of the batch has no rule for Taylor series")
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    out = (x - mean.view(shape)) * scale.view(shape)
    return out if bias is None else out + bias.view(shape)


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise NoRule("dropout in training has no rule for Taylor series")
    return x


def _per_coefficient(function: Callable[..., Tensor]) -> Callable[..., TaylorTensor]:
    """Rule of a linear function of one tensor: ``function`` gets the coefficients [k, …] and the other arguments."""

    def rule(x: Any, *args: Any, **kwargs: Any) -> TaylorTensor:
        u, indices = _series(x)
        return TaylorTensor(function(u, *args, **kwargs), indices)

    return rule


def _get_item(u: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if sum(isinstance(i, Tensor | list) for i in index) > 1:  # torch would move their axis in front of the coefficients
        raise NoRule("an index with several tensors has no rule for Taylor series")
    return u[(slice(None), *index)]


def _squeeze(u: Tensor, dim: int | None = None) -> Tensor:
    return u.squeeze(_axis(dim)) if dim is not None else u.squeeze(tuple(range(1, u.dim())))


def _expand(u: Tensor, *sizes: Any) -> Tensor:
    shape = _sizes(sizes)
    return _align(u, len(shape)).expand(len(u), *shape)


def _flatten(u: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return u.flatten(_axis(start_dim), _axis(end_dim))


def _unbind(x: Any, dim: int = 0) -> tuple[TaylorTensor, ...]:
    u, indices = _series(x)
    return tuple(TaylorTensor(part, indices) for part in u.unbind(_axis(dim)))


def _split(name: str) -> Callable[..., tuple[TaylorTensor, ...]]:
    def rule(x: Any, size: Any, dim: int = 0) -> tuple[TaylorTensor, ...]:
        u, indices = _series(x)
        return tuple(TaylorTensor(part, indices) for part in getattr(torch, name)(u, size, dim=_axis(dim)))

    return rule


def _join(name: str) -> Callable[..., TaylorTensor]:
    def rule(tensors: Sequence[Any], dim: int = 0) -> TaylorTensor:
        indices = next(_series(x)[1] for x in tensors if _is_series(x))
        parts = [_series(x)[0] if _is_series(x) else _constant(x, indices) for x in tensors]
        return TaylorTensor(getattr(torch, name)(parts, dim=_axis(dim)), indices)

    return rule


def _constant(x: Tensor, indices: Indices) -> Tensor:
    """The series of a tensor that does not depend on the points."""
    return torch.cat([x.unsqueeze(0), x.new_zeros(len(indices.orders) - 1, *x.shape)])


def _total(name: str) -> Callable[..., TaylorTensor]:
    def rule(x: Any, dim: Any = None, keepdim: bool = False) -> TaylorTensor:
        u, indices = _series(x)
        return TaylorTensor(getattr(torch, name)(u, _axes(dim, x.dim()), keepdim=keepdim), indices)

    return rule


def _on_value(name: str) -> Callable[..., Tensor]:
    """Rule of a function whose result does not depend on the points smoothly, such as a comparison."""

    def rule(*args: Any, **kwargs: Any) -> Tensor:
        plain = [_series(x)[0][0].detach() if _is_series(x) else x for x in args]
        found: Tensor = getattr(torch if hasattr(torch, name) else Tensor, name)(*plain, **kwargs)
        return found

    return rule


RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "radd": _add,
    "sub": lambda a, b, *, alpha=1.0: _add(a, b, alpha=-alpha),
    "rsub": lambda a, b, *, alpha=1.0: _add(a, b, sign=-alpha),
    "neg": _per_coefficient(torch.neg),
    "mul": _multiply,
    "rmul": _multiply,
    "div": _divide,
    "truediv": _divide,
    "rdiv": lambda a, b: _divide(b, a),
    "rtruediv": lambda a, b: _divide(b, a),
    "lerp": lambda start, end, weight: start + weight * (end - start),
    "matmul": _matmul,
    "rmatmul": lambda a, b: _matmul(b, a),
    "mm": _matmul,
    "bmm": _matmul,
    "linear": _linear,
    "einsum": _einsum,
    **{name: _activation(name) for name in ("tanh", "sigmoid", "silu", "sin", "cos", "exp", "log")},
    "gelu": _gelu,
    "softplus": _softplus,
    "relu": _relu,
    "pow": _pow,
    "rpow": _rpow,
    "square": lambda x: _pow(x, 2),
    "sqrt": lambda x: _pow(x, 0.5),
    "rsqrt": lambda x: _pow(x, -0.5),
    "reciprocal": lambda x: _pow(x, -1),
    "where": _where,
    "softmax": _softmax,
    "layer_norm": layer_norm,
    "batch_norm": _batch_norm,
    "dropout": _dropout,
    "sum": _total("sum"),
    "mean": _total("mean"),
    "getitem": _per_coefficient(_get_item),
    "select": _per_coefficient(lambda u, dim, index: u.select(_axis(dim), index)),
    "narrow": _per_coefficient(lambda u, dim, start, length: u.narrow(_axis(dim), start, length)),
    "unsqueeze": _per_coefficient(lambda u, dim: u.unsqueeze(_axis(dim))),
    "squeeze": _per_coefficient(_squeeze),
    "reshape": _per_coefficient(lambda u, *sizes: u.reshape(len(u), *_sizes(sizes))),
    "view": _per_coefficient(lambda u, *sizes: u.reshape(len(u), *_sizes(sizes))),
    "flatten": _per_coefficient(_flatten),
    "unflatten": _per_coefficient(lambda u, dim, sizes: u.unflatten(_axis(dim), sizes)),
    "expand": _per_coefficient(_expand),
    "transpose": _per_coefficient(lambda u, a, b: u.transpose(_axis(a), _axis(b))),
    "permute": _per_coefficient(lambda u, *dims: u.permute(0, *(d % (u.dim() - 1) + 1 for d in _sizes(dims)))),
    "T": _per_coefficient(lambda u: u.permute(0, *range(u.dim() - 1, 0, -1))),
    "mT": _per_coefficient(lambda u: u.mT),
    "contiguous": _per_coefficient(lambda u, **_: u.contiguous()),
    "clone": _per_coefficient(lambda u, **_: u.clone()),
    "unbind": _unbind,
    "iter": lambda x: iter(_unbind(x)),
    "split": _split("split"),
    "chunk": _split("chunk"),
    "cat": _join("cat"),
    "concat": _join("cat"),
    "stack": _join("stack"),
    **{name: _on_value(name) for name in ("gt", "lt", "ge", "le", "eq", "ne", "new_zeros", "new_ones", "new_full",
                                          "new_tensor", "new_empty", "zeros_like", "ones_like", "detach")},
}  # fmt: skip
"""Name of a torch function, without underscores → its rule."""
