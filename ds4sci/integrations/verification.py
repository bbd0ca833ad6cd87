"""Before a module's method is replaced: both ways on a small call with random weights, which must agree.

A class is known by its name or its attributes, and either may stay while the code behind it changes.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

from ds4sci.integrations.replacement import Replacement, Unserved

AGREE = 1e-4
"""Relative difference below which two fp32 results are the same formula: rounding makes 1e-6, another formula more."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def random_mask(generator: torch.Generator, *shape: int) -> Tensor:
    """Float, 1 in seven of ten places, else 0."""
    return (torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") > 0.3).float()


def rehearse(replacement: Replacement, module: nn.Module) -> str | None:
    """Why the replacement must not stand in for the module's method; None when the two give the same numbers.

    Numbers are compared as in inference, then in training with the gradients of weights and inputs, masks aside: a
    module may drop values, or stop a gradient. A copy of the module is asked, in fp32 on the CPU, with weights drawn
    for the purpose (fresh ones are often zero); our side runs the kernels' references. Code that no CPU runs, such as a
    layer norm of CUDA's, is asked where the module is. The module itself is not touched.
    """
    if not all(p.is_floating_point() for p in module.parameters()):
        return "its weights are quantized"
    for path, part in replacement.passed_by(module).items():
        if isinstance(part, _DropoutNd) and part.p > 0:
            return f"its {path} drops values in training, which the kernels do not"
    reason: str | None = None
    for device in _devices(module):
        fails, reason = _compare(replacement, module, device)
        if not fails:
            break
    return reason


def _devices(module: nn.Module) -> list[torch.device]:
    """The CPU, and where the module's weights are if that is a place with memory."""
    own = {p.device for p in module.parameters() if p.device.type not in ("cpu", "meta")}
    return [torch.device("cpu"), *own]


def _compare(replacement: Replacement, module: nn.Module, device: torch.device) -> tuple[bool, str | None]:
    """Whether the module's own call fails on ``device``, and why the replacement must not stand in for it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _exact_products():
        double = _double(module, generator).to(device)
        try:
            first, others = tree_map(
                lambda x: x.to(device) if isinstance(x, Tensor) else x, replacement.example(double, generator)
            )
            got = replacement.serve(double, first.clone(), implementation="reference", **others)
        except Unserved as refusal:
            return False, str(refusal)
        try:
            want = getattr(type(double), replacement.method)(double, first.clone(), **others)
        except Exception as error:  # a stranger's code may raise anything; it is left alone, and the report says why
            return True, f"a small call of its own {replacement.method} fails: {error}".splitlines()[0]
        pairs = zip(*((x,) if not isinstance(x, tuple) else x for x in (got, want)), strict=True)
        if not all(_agree(one, other) for one, other in pairs):
            return False, "its numbers differ from those of the published algorithm"
        double.train()
        try:
            own = _in_training(double, device, first, others, getattr(type(double), replacement.method))
        except Exception as error:
            return True, f"a small call of its own {replacement.method} in training fails: {error}".splitlines()[0]
        try:
            ours = _in_training(double, device, first, others, partial(replacement.serve, implementation="reference"))
        except Unserved as refusal:
            return False, f"in training: {refusal}"
    if not all(_agree(one, other) for one, other in zip(ours[0], own[0], strict=True)):
        return False, "its numbers in training differ from those of the published algorithm"
    floor = 0.1 * max(float(gradient.norm()) for gradient in own[1])
    if not all(_agree(one, other, floor) for one, other in zip(ours[1], own[1], strict=True)):
        return False, "its gradients differ from those of the published algorithm"
    return False, None


def _in_training(
    double: Any, device: torch.device, first: Tensor, others: dict[str, Any], call: Callable[..., Any]
) -> tuple[list[Any], list[Tensor]]:
    """Outputs, and the gradients of a weighted sum of them by inputs, masks aside, and weights; the same draws."""
    given = {"": first, **others}
    leaves = {name: x.clone().requires_grad_() for name, x in given.items() if _wants_gradient(x)}
    weights = list(double.parameters())
    for weight in weights:
        weight.grad = None
    with torch.enable_grad(), _same_draws(device):
        used = {name: leaf * 1 for name, leaf in leaves.items()}  # methods write into what they are given
        made = call(double, used.pop("", first), **{**others, **used})
        outputs = list(made) if isinstance(made, tuple) else [made]
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros((), device=device)
        for out in outputs:
            if out is not None:
                total = total + torch.mul(out, normal(generator, *out.shape).to(device)).sum()
        if total.requires_grad:
            total.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*leaves.values(), *weights)]
    return [None if out is None else torch.mul(out, 1).detach() for out in outputs], grads


def _wants_gradient(x: Any) -> bool:
    """Whether it is floating and no mask."""
    return isinstance(x, Tensor) and x.is_floating_point() and not bool(((x == 0) | (x == 1)).all())


@contextlib.contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Random numbers from a seed of our own; the user's generators go on where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """fp32 products in fp32, whatever the user allows a GPU to round them to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _double(module: nn.Module, generator: torch.Generator) -> Any:
    """A copy in fp32 on the CPU, without hooks, its weights normal and scaled by 1/√(inputs)."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        memo[id(parameter)] = nn.Parameter(scale * normal(generator, *parameter.shape))
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            memo[id(hooks)] = OrderedDict()  # they may hold anything, and would be called
    return copy.deepcopy(module, memo).eval()


def _agree(one: Any, other: Any, floor: float = 0.0) -> bool:
    """Whether two results are alike, measured against the second or, where that is less, ``floor``; an attention map
    becomes a tensor by the arithmetic."""
    if one is None or other is None:
        return one is other
    difference = torch.sub(one, other)
    return bool(difference.isfinite().all() and difference.norm() <= AGREE * max(float(torch.norm(other)), floor))
