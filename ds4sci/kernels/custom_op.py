"""Differentiable torch custom operators from a forward and a backward function.

Both functions take tensors first (``None`` where an input is optional), then numbers and strings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def define_custom_op(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., list[Tensor]],
    fake_impl: Callable[..., Any],
    *,
    save_output: bool = False,
    donated_backward: Callable[..., list[Tensor]] | None = None,
) -> Callable[..., Any]:
    """Register ``ds4sci::name`` and ``ds4sci::name_backward``; return the first.

    forward           ``(*tensors, *options)`` → the output, or a tuple of the output and the tensors that backward
                      needs besides the inputs
    backward          ``(grad, *tensors, *saved, *options, needs_grad)`` → one gradient per input tensor, an empty
                      tensor where ``needs_grad`` is False
    fake_impl         ``(*tensors, *options)`` → empty outputs, for the compiler
    save_output       ``saved`` begins with the output
    donated_backward  replaces ``backward`` where the last option, ``donated``, is True: it may write gradients over
                      the inputs. Not under torch.compile, nor with ``create_graph=True``
    """
    signature = inspect.signature(forward)
    tensors = sum("Tensor" in str(p.annotation) for p in signature.parameters.values())
    returns_tuple = str(signature.return_annotation).startswith("tuple")
    op = torch.library.custom_op(f"ds4sci::{name}", forward, mutates_args=())
    backward_op = torch.library.custom_op(f"ds4sci::{name}_backward", backward, mutates_args=())
    op.register_fake(fake_impl)

    @backward_op.register_fake
    def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, needs_grad = arguments[:tensors], arguments[-1]
        return [
            torch.empty_like(x) if needed and x is not None else grad.new_empty(0)
            for x, needed in zip(inputs, needs_grad, strict=True)
        ]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[tensors:]
        results = output if returns_tuple else (output,)
        ctx.save_for_backward(*inputs[:tensors], *(results if save_output else results[1:]))
        ctx.set_materialize_grads(False)

    def autograd_backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * (tensors + len(ctx.options))
        needs_grad = list(ctx.needs_input_grad[:tensors])
        run: Callable[..., list[Tensor]] = backward_op
        eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if donated_backward is not None and ctx.options[-1] and eager:
            run = donated_backward
        grads = run(grad, *ctx.saved_tensors, *ctx.options, needs_grad)
        needed = (g if needs else None for g, needs in zip(grads, needs_grad, strict=True))
        return *needed, *(None for _ in ctx.options)

    def refuse_double_backward(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{name}: second derivatives need implementation='reference'; the fused implementations have none"
        )

    op.register_autograd(autograd_backward, setup_context=setup_context)
    backward_op.register_autograd(refuse_double_backward, setup_context=lambda ctx, inputs, output: None)
    return op


def is_non_overlapping(x: Tensor) -> bool:
    """Whether no two elements of ``x`` share memory: False for broadcast dimensions and overlapping windows."""
    extent = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride <= extent:
            return False
        extent += stride * (size - 1)
    return True
