"""Torch operators of fused kernels: a forward and a backward function become one differentiable operator.

Both take tensors first (``None`` where one may be absent), then numbers and words, last the implementation's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiable(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., list[Tensor]],
    shape: Callable[..., Any],
    *,
    saves_result: bool = False,
) -> Callable[..., Any]:
    """Register ``ds4sci::name`` and ``ds4sci::name_backward`` and return the first.

    ``forward(*tensors, *options)`` gives the result, or a tuple of it and of what backward needs besides the tensors;
    ``saves_result``: the result too, before the others.
    ``backward(grad, *tensors, *saved, *options, wanted)`` gives a gradient for every tensor, an empty one where
    ``wanted`` is False. ``shape(*tensors, *options)`` gives empty results for the compiler.
    """
    signature = inspect.signature(forward)
    tensors = sum("Tensor" in str(p.annotation) for p in signature.parameters.values())
    several = str(signature.return_annotation).startswith("tuple")
    operator = torch.library.custom_op(f"ds4sci::{name}", forward, mutates_args=())
    reverse = torch.library.custom_op(f"ds4sci::{name}_backward", backward, mutates_args=())
    operator.register_fake(shape)

    @reverse.register_fake
    def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
        inputs, wanted = arguments[:tensors], arguments[-1]
        return [
            torch.empty_like(x) if want and x is not None else grad.new_empty(0)
            for x, want in zip(inputs, wanted, strict=True)
        ]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options = inputs[tensors:]
        results = output if several else (output,)
        ctx.save_for_backward(*inputs[:tensors], *(results if saves_result else results[1:]))
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * (tensors + len(ctx.options))
        wanted = list(ctx.needs_input_grad[:tensors])
        grads = reverse(grad, *ctx.saved_tensors, *ctx.options, wanted)
        found = (g if want else None for g, want in zip(grads, wanted, strict=True))
        return *found, *(None for _ in ctx.options)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise NotImplementedError(
            f"{name}: second derivatives need implementation='reference'; the fused ones have none"
        )

    operator.register_autograd(differentiate, setup_context=setup)
    reverse.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)
    return operator
