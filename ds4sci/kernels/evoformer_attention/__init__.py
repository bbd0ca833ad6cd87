"""Evoformer attention: ``out = softmax(q kᵀ · scale + mask + pair_bias) v``, gated by ``sigmoid(gate)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ds4sci.kernels.evoformer_attention import native, op, triton
from ds4sci.kernels.evoformer_attention.cases import CASES, SIZE_SWEEPS
from ds4sci.kernels.evoformer_attention.reference import reference, reference_lse
from ds4sci.kernels.input_checks import check_added_mask, check_pair_bias
from ds4sci.kernels.spec import Implementation, Kernel, runs_anywhere


def _fused(name: str, *, lse: bool = False) -> Callable[..., Any]:
    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        pair_bias: Tensor | None = None,
        gate: Tensor | None = None,
        *,
        scale: float | None = None,
    ) -> Any:
        found = op.forward(q, k, v, mask, pair_bias, gate, q.shape[-1] ** -0.5 if scale is None else scale, name)
        return found[:2] if lse else found[0]

    return run


KERNEL = Kernel(
    "evoformer_attention",
    reference,
    (
        Implementation("triton", _fused("triton"), triton.why_not),
        Implementation("native", _fused("native"), native.why_not),
        Implementation("tiled", _fused("tiled"), runs_anywhere),
        Implementation("reference", reference, runs_anywhere),
    ),
    CASES,
    SIZE_SWEEPS,
)
LSE_KERNEL = Kernel(
    "evoformer_attention",
    reference_lse,
    (
        Implementation("triton", _fused("triton", lse=True), triton.why_not),
        Implementation("native", _fused("native", lse=True), native.why_not),
        Implementation("tiled", _fused("tiled", lse=True), runs_anywhere),
        Implementation("reference", reference_lse, runs_anywhere),
    ),
)


def evoformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Attention over n within each of s rows, with a bias that all rows share (AlphaFold 2, Algorithms 7, 8, 13, 14).

    q ``[b, s, q, h, d]``, k and v ``[b, s, k, h, d]``, any strides: a transposed view is column attention.
    ``mask`` ``[b, s, k]``: bool (True = attend to this key) or a float added to the scores. ``pair_bias``
    ``[b, h, q, k]``, where any dimension may be 1 to broadcast, in its own dtype. ``gate`` like q: the output is
    multiplied by ``sigmoid(gate)``. ``scale`` defaults to ``d ** -0.5``. Returns ``[b, s, q, h, d]``.

    A query without keys (mask False everywhere, or only scores of -inf) gets output 0 and gradient 0. Only -inf means
    "no key": over scores that are all -1e9 or finfo.min the softmax is a mean, as in torch. Mask and bias are added in
    fp32 or fp64, so the sum of two finfo.min is -inf. ``native`` scales the product of q and k after computing it: it
    must be finite in fp32. NaN and +inf give NaN, as in torch; keys that a bool mask drops are not read.

    Gradients are computed for those of q, k, v, pair_bias, gate and a float mask that require them. The same inputs
    give the same bits on any number of threads. Second derivatives require ``implementation="reference"``; the other
    implementations refuse them.

    implementation  ``triton``     NVIDIA and AMD GPUs, d ≤ 128; saves its inputs, the output and lse ``[b, s, h, q]``
                    ``native``     C++ on the CPU; saves the same
                    ``tiled``      plain torch on any device, a bounded tile of scores at a time; saves the same
                    ``reference``  readable torch; saves ``b·s·h·q·k`` scores

    Raises ValueError for shapes and dtypes that do not match, with the argument's name, and when the named
    implementation cannot run, with its reason.
    """
    _check(q, k, v, mask, pair_bias, gate)
    return KERNEL(q, k, v, mask, pair_bias, gate, scale=scale, implementation=implementation)


def evoformer_attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    pair_bias: Tensor | None = None,
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``evoformer_attention`` without a gate, and ``lse = log Σ_k exp(score)`` ``[b, s, h, q]``, both differentiable.

    Results over disjoint sets of keys merge exactly: ``lse = logaddexp(lse₁, lse₂)``,
    ``out = Σᵢ exp(lseᵢ - lse) outᵢ``. A query without keys has lse -inf.
    """
    _check(q, k, v, mask, pair_bias, None)
    return LSE_KERNEL(q, k, v, mask, pair_bias, scale=scale, implementation=implementation)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pair_bias: Tensor | None, gate: Tensor | None) -> None:
    if q.dim() != 5 or k.dim() != 5:
        raise ValueError(f"q and k must be [b, s, n, h, d]; got {tuple(q.shape)} and {tuple(k.shape)}")
    b, s, n, h, d = q.shape
    keys = k.shape[2]
    for name, x, expected in (
        ("k", k, (b, s, keys, h, d)),
        ("v", v, (b, s, keys, h, d)),
        ("gate", gate, (b, s, n, h, d)),
        ("mask", mask, (b, s, keys)),
    ):
        if x is not None and tuple(x.shape) != expected:
            raise ValueError(f"{name} must be {expected} for q {tuple(q.shape)}; got {tuple(x.shape)}")
    for name, x in (("k", k), ("v", v), ("gate", gate)):
        if x is not None and x.dtype != q.dtype:
            raise ValueError(f"{name} must be {q.dtype} like q; got {x.dtype}")
    check_pair_bias(pair_bias, (b, h, n, keys), q, "q")
    check_added_mask(mask)
