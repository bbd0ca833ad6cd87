"""Torch operators of fused kernels: a forward and a backward function become one differentiable operator.

Both take tensors first (``None`` where one may be absent), then numbers and words, last the implementation's name.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def define_custom_op(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., list[Tensor]],
    shape: Callable[..., Any],
    *,
    save_output: bool = False,
    in_place: Callable[..., list[Tensor]] | None = None,
) -> Callable[..., Any]:
    """Register ``ds4sci::name`` and ``ds4sci::name_backward`` and return the first.

    ``forward(*tensors, *options)`` gives the result, or a tuple of it and of what backward needs besides the tensors;
    ``save_output``: the result too, before the others.
    ``backward(grad, *tensors, *saved, *options, needs_grad)`` gives a gradient for every tensor, an empty one where
    ``needs_grad`` is False. ``shape(*tensors, *options)`` gives empty results for the compiler. ``in_place`` is a
    backward that takes one more list: which of the tensors are ``alone``, so that their gradients may be written over
    them.
    """
    signature = inspect.signature(forward)
    tensors = sum("Tensor" in str(p.annotation) for p in signature.parameters.values())
    several = str(signature.return_annotation).startswith("tuple")
    operator = torch.library.custom_op(f"ds4sci::{name}", forward, mutates_args=())
    reverse = torch.library.custom_op(f"ds4sci::{name}_backward", backward, mutates_args=())
    operator.register_fake(shape)

    @reverse.register_fake
    def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, needs_grad = arguments[:tensors], arguments[-1]
        return [
            torch.empty_like(x) if want and x is not None else grad.new_empty(0)
            for x, want in zip(inputs, needs_grad, strict=True)
        ]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[tensors:]
        results = output if several else (output,)
        ctx.save_for_backward(*inputs[:tensors], *(results if save_output else results[1:]))
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * (tensors + len(ctx.options))
        needs_grad = list(ctx.needs_input_grad[:tensors])
        saved = ctx.saved_tensors
        may = in_place and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        free = alone(saved)[:tensors] if may else []
        if in_place and any(free):
            grads = in_place(grad, *saved, *ctx.options, needs_grad, free)
        else:
            grads = reverse(grad, *saved, *ctx.options, needs_grad)
        found = (g if want else None for g, want in zip(grads, needs_grad, strict=True))
        return *found, *(None for _ in ctx.options)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{name}: second derivatives need implementation='reference'; the fused ones have none"
        )

    operator.register_autograd(differentiate, setup_context=setup)
    reverse.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)
    return operator


def alone(saved: Sequence[Tensor | None]) -> list[bool]:
    """Which of the tensors a backward pass was given nobody else has, so that nobody can see them being overwritten.

    True of what a checkpoint made again for the pass that asks. Never of what autograd itself keeps, nor of what a hook
    keeps that gives it out again, nor of a tensor that any name but ``saved`` still refers to: counted are Python's
    references, torch's to the tensor, and the tensors that share its memory.
    """
    nobody = _of_nobody()
    if nobody is None:
        return [False] * len(saved)
    return [found == nobody for found in _references(saved)]


def _references(saved: Sequence[Tensor | None]) -> Iterator[tuple[int, ...] | None]:
    """References to each tensor in Python, in C++, and to its memory; None for what is no plain tensor."""
    for x in saved:
        if x is None or type(x) is not Tensor:
            yield None
        else:  # the last is torch's own, for CUDA graphs
            uses: int = x._use_count()  # type: ignore[attr-defined]
            yield sys.getrefcount(x), uses, torch._C._storage_Use_Count(x.untyped_storage()._cdata)


@functools.cache
def _of_nobody() -> tuple[int, ...] | None:
    """``_references`` of a tensor that nobody else has; None where this torch cannot count."""
    if not hasattr(torch._C, "_storage_Use_Count") or not hasattr(Tensor, "_use_count"):
        return None
    return next(_references((torch.empty(1),)))


def is_non_overlapping(x: Tensor) -> bool:
    """Whether every element of ``x`` has a place of its own: no broadcast, no windows that overlap."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride <= reach:
            return False
        reach += stride * (size - 1)
    return True
