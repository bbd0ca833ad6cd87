"""Floating-point operations of the operators of ds4sci, and of torch's attention on a CPU, for torch's FLOP counter.

``FlopCounterMode(custom_mapping=FORMULAS)`` counts 0 for these operators without ``FORMULAS``. As in torch's own
formulas, a multiply-add is two operations, and only matrix products, convolutions and attention count. A backward pass
counts what it computes, including the products that it computes a second time because the forward pass did not save
them. A causal mask halves the products of attention, which skip the masked part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import ds4sci.kernels  # noqa: F401  (registers the operators)

Formula = Callable[..., int]
FORMULAS: dict[Any, Formula] = {}
"""Operator → FLOPs as a function of its arguments."""

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Products of size queries × keys × channels in attention: q·k and p·v; again q·k, and the gradients of p, q, k, v."""


def _counts(*operators: Any) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        formula._get_raw = True  # type: ignore[attr-defined]  # the counter passes tensors instead of shapes
        for operator in operators:
            FORMULAS[operator] = formula
        return formula

    return register


def causal_pairs(queries: int, keys: int) -> int:
    """Pairs of a query i and a key j ≤ i, where the first query meets the first key."""
    seen = min(queries, keys)
    return seen * (seen + 1) // 2 + (queries - seen) * keys


def _attention(queries: Tensor, keys: int, causal: bool, channels: int) -> int:
    """Operations of one product of [..., queries, channels] with [..., keys, channels]."""
    length = queries.shape[-2]
    pairs = causal_pairs(length, keys) if causal else length * keys
    return 2 * (queries.numel() // max(1, length * queries.shape[-1])) * pairs * channels


@_counts(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def sdpa_cpu(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> int:
    """torch's fused attention on a CPU; tensors [b, h, n, d]."""
    products = (query.shape[-1], value.shape[-1])
    return sum(_attention(query, key.shape[-2], is_causal, channels) for channels in products)


@_counts(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def sdpa_cpu_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float,
    is_causal: bool, **_: Any,
) -> int:  # fmt: skip
    """Backward of ``sdpa_cpu``."""
    d, d_v = query.shape[-1], value.shape[-1]
    products = (d, d, d, d_v, d_v)  # scores, q, k; probabilities, v
    return sum(_attention(query, key.shape[-2], is_causal, channels) for channels in products)


@_counts(torch.ops.aten.addmm_, torch.ops.aten.baddbmm_)
def accumulated_product(total: Tensor, a: Tensor, b: Tensor, **_: Any) -> int:
    """``total += a @ b``, which torch's counter leaves out."""
    return 2 * a.numel() * b.shape[-1]


@_counts(torch.ops.ds4sci.varlen_attention)
def varlen_attention(q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, *_: Any, **__: Any) -> int:
    """Attention within documents; q [n, h, d], doc_spans [documents, 2]."""
    return FORWARD_PRODUCTS * _within_documents(q, doc_spans, causal)


@_counts(torch.ops.ds4sci.varlen_attention_backward)
def varlen_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, out: Tensor, lse: Tensor, lse_low: Tensor,
    causal: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Backward of ``varlen_attention``."""
    return BACKWARD_PRODUCTS * _within_documents(q, doc_spans, causal)


def _within_documents(q: Tensor, doc_spans: Tensor, causal: bool) -> int:
    lengths = (doc_spans[:, 1] - doc_spans[:, 0]).tolist()
    pairs = sum(causal_pairs(n, n) if causal else n * n for n in lengths)
    return 2 * q.shape[1] * q.shape[2] * pairs


@_counts(torch.ops.ds4sci.evoformer_attention)
def evoformer_attention(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    """Attention with a pair bias; q [b, s, q, h, d], k [b, s, k, h, d]."""
    return FORWARD_PRODUCTS * 2 * q.numel() * k.shape[2]


@_counts(torch.ops.ds4sci.evoformer_attention_backward)
def evoformer_attention_backward(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, *rest: Any, **_: Any
) -> int:
    """Backward of ``evoformer_attention``; gradients of q, k and v that are not needed are not computed."""
    return (2 + sum(rest[-1][:3])) * 2 * q.numel() * k.shape[2]


@_counts(torch.ops.ds4sci.pair_bias)
def pair_bias(z: Tensor, norm_weight: Any, norm_bias: Any, weight: Tensor, *_: Any, **__: Any) -> int:
    """Linear layer of every pair; z [b, n, n, c], weight [h, c]."""
    return _linear(z, weight)


@_counts(torch.ops.ds4sci.pair_bias_backward)
def pair_bias_backward(
    grad: Tensor, z: Tensor, norm_weight: Any, norm_bias: Any, weight: Tensor, *rest: Any, **_: Any
) -> int:
    """Backward of ``pair_bias``."""
    needs_grad: Sequence[bool] = rest[-1]
    return (any(needs_grad[:3]) + needs_grad[3]) * _linear(z, weight)


@_counts(torch.ops.ds4sci.transition)
def transition(
    x: Tensor, norm_weight: Any, norm_bias: Any, weight_1: Tensor, bias_1: Any, weight_2: Tensor, *_: Any, **__: Any
) -> int:
    """Two linear layers."""
    return _linear(x, weight_1) + _linear(x, weight_2)


@_counts(torch.ops.ds4sci.transition_backward)
def transition_backward(
    grad: Tensor, x: Tensor, norm_weight: Any, norm_bias: Any, weight_1: Tensor, bias_1: Any, weight_2: Tensor,
    *rest: Any, **_: Any,
) -> int:  # fmt: skip
    """Backward of ``transition``, which computes the hidden layer again."""
    needs_grad: Sequence[bool] = rest[-1]
    first, second = _linear(x, weight_1), _linear(x, weight_2)
    return first * (1 + any(needs_grad[:3]) + needs_grad[3]) + second * (1 + needs_grad[5])


@_counts(torch.ops.ds4sci.outer_product_mean)
def outer_product_mean(a: Tensor, b: Tensor, weight: Tensor, bias: Any, mask: Tensor, *_: Any, **__: Any) -> int:
    """Outer product of the columns of a [b, s, n_a, c] and b [b, s, n_b, c], and a linear layer [c_z, c·c]."""
    first, second, count = _outer_product(a, b, weight)[1:]
    return first + second + count


@_counts(torch.ops.ds4sci.outer_product_mean_backward)
def outer_product_mean_backward(grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Backward of ``outer_product_mean``, which computes the first product again."""
    needs_weight = rest[-1][2]
    weight_first, first, second, count = _outer_product(a, b, weight)
    if weight_first:
        return first * (2 + needs_weight) + second * 2 + count
    return first * (2 + needs_weight) + second * (1 + needs_weight) + count


def _outer_product(a: Tensor, b: Tensor, weight: Tensor) -> tuple[bool, int, int, int]:
    """Whether the weight is multiplied first, operations of the first and second product, and of the pair counts."""
    batch, s, n_a, c = a.shape
    pairs = batch * n_a * b.shape[2]
    count = 2 * s * pairs
    if 0 < 2 * s <= c:
        return True, 2 * batch * s * n_a * weight.numel(), 2 * pairs * s * c * weight.shape[0], count
    return False, 2 * s * pairs * weight.shape[1], 2 * pairs * weight.numel(), count


@_counts(torch.ops.ds4sci.triangle_multiplication)
def triangle_multiplication(z: Tensor, *weights: Any, **_: Any) -> int:
    """Projections of z [b, n, n, c], the product over the third residue, output projection and gate."""
    project, product, out, gate = _triangle(z, weights)
    return project + product + out + gate


@_counts(torch.ops.ds4sci.triangle_multiplication_backward)
def triangle_multiplication_backward(grad: Tensor, z: Tensor, *weights: Any, **_: Any) -> int:
    """Backward of ``triangle_multiplication``: computes projections again, and a and b once more if not saved."""
    project, product, out, gate = _triangle(z, weights)
    needs_grad: Sequence[bool] = weights[-1]
    return (
        project * (3 - weights[-2] + needs_grad[3])
        + out * (2 + needs_grad[7])
        + gate * (2 + needs_grad[9])
        + 2 * product
    )


def _triangle(z: Tensor, weights: Sequence[Any]) -> tuple[int, int, int, int]:
    weight_in, weight_out, weight_gate = weights[2], weights[6], weights[8]
    channels, n = weight_out.shape[1], z.shape[1]
    return _linear(z, weight_in), 2 * z.shape[0] * channels * n**3, _linear(z, weight_out), _linear(z, weight_gate)


@_counts(torch.ops.ds4sci.gated_self_attention)
def gated_self_attention(x: Tensor, *weights: Any, **_: Any) -> int:
    """Projections to q, k, v and gate, attention along n of x [b, s, n, c], output projection."""
    project, attention, out = _self_attention(x, weights)
    return project + FORWARD_PRODUCTS * attention + out


@_counts(torch.ops.ds4sci.gated_self_attention_backward)
def gated_self_attention_backward(grad: Tensor, x: Tensor, *weights: Any, **_: Any) -> int:
    """Backward of ``gated_self_attention``, which computes projections again that are not saved."""
    project, attention, out = _self_attention(x, weights)
    needs_grad: Sequence[bool] = weights[-1]
    return project * (2 - weights[-2] + needs_grad[3]) + BACKWARD_PRODUCTS * attention + out * (1 + needs_grad[5])


def _self_attention(x: Tensor, weights: Sequence[Any]) -> tuple[int, int, int]:
    weight_in, weight_out = weights[2], weights[4]
    rows = x.numel() // x.shape[-1]
    return _linear(x, weight_in), 2 * rows * x.shape[-2] * weight_out.shape[1], _linear(x, weight_out)


def _linear(x: Tensor, weight: Tensor) -> int:
    """Operations of a linear layer on every row of x [..., c]."""
    return 2 * (x.numel() // x.shape[-1]) * weight.numel()
