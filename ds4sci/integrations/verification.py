"""Verification of a replacement: a small call with random weights must give the same result as the original method.

A class is recognized by its name or attributes. Both may stay the same while the code behind them changes.
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

from ds4sci.integrations.replacement import Replacement, UnsupportedCall

RTOL = 1e-4
"""Relative difference below which two fp32 results come from the same formula. Rounding causes about 1e-6."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal fp32 values on the CPU."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def random_mask(generator: torch.Generator, *shape: int) -> Tensor:
    """fp32 mask on the CPU, 1 with probability 0.7, else 0."""
    return (torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") > 0.3).float()


def verify(replacement: Replacement, module: nn.Module) -> str | None:
    """Why the replacement must not be used for ``module``; None if it gives the same results as the method.

    Compares outputs in evaluation mode, then outputs and the gradients of weights and inputs (except masks) in training
    mode, since a module may apply dropout or stop a gradient. The comparison uses a copy of the module in fp32 on the
    CPU with random weights (initial ones are often zero), and the kernels' reference implementations. Code that does
    not run on a CPU, such as a CUDA layer norm, is compared on the module's own device. The module is not changed.
    """
    if not all(p.is_floating_point() for p in module.parameters()):
        return "its weights are quantized"
    for path, part in replacement.bypassed_submodules(module).items():
        if isinstance(part, _DropoutNd) and part.p > 0:
            return f"its {path} applies dropout in training, which the kernels do not support"
    reason: str | None = None
    for device in _devices(module):
        call_failed, reason = _compare(replacement, module, device)
        if not call_failed:
            break
    return reason


def _devices(module: nn.Module) -> list[torch.device]:
    """The CPU, and the device of the module's weights if it is another one that holds memory."""
    own = {p.device for p in module.parameters() if p.device.type not in ("cpu", "meta")}
    return [torch.device("cpu"), *own]


def _compare(replacement: Replacement, module: nn.Module, device: torch.device) -> tuple[bool, str | None]:
    """Whether the original method fails on ``device``, and why the replacement must not be used."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_precision_matmul():
        model = _randomized_copy(module, generator).to(device)
        original = getattr(type(model), replacement.method)
        try:
            first, others = tree_map(
                lambda x: x.to(device) if isinstance(x, Tensor) else x, replacement.example(model, generator)
            )
            found = replacement.run(model, first.clone(), implementation="reference", **others)
        except UnsupportedCall as error:
            return False, str(error)
        try:
            expected = original(model, first.clone(), **others)
        except Exception as error:  # foreign code may raise anything: the module is skipped and the report says why
            return True, f"a small call of its original {replacement.method} fails: {error}".splitlines()[0]
        pairs = zip(*((x,) if not isinstance(x, tuple) else x for x in (found, expected)), strict=True)
        if not all(_is_close(one, other) for one, other in pairs):
            return False, "its output differs from that of the published algorithm"
        model.train()
        try:
            expected_step = _training_step(model, device, first, others, original)
        except Exception as error:
            return True, f"a small call of its original {replacement.method} in training fails: {error}".splitlines()[0]
        try:
            step = _training_step(model, device, first, others, partial(replacement.run, implementation="reference"))
        except UnsupportedCall as error:
            return False, f"in training: {error}"
    if not all(_is_close(one, other) for one, other in zip(step[0], expected_step[0], strict=True)):
        return False, "its output in training differs from that of the published algorithm"
    floor = 0.1 * max(float(gradient.norm()) for gradient in expected_step[1])
    if not all(_is_close(one, other, floor) for one, other in zip(step[1], expected_step[1], strict=True)):
        return False, "its gradients differ from those of the published algorithm"
    return False, None


def _training_step(
    model: Any, device: torch.device, first: Tensor, others: dict[str, Any], call: Callable[..., Any]
) -> tuple[list[Any], list[Tensor]]:
    """Outputs, and the gradients of a weighted sum of them by inputs (except masks) and weights, from a fixed seed."""
    given = {"": first, **others}
    leaves = {name: x.clone().requires_grad_() for name, x in given.items() if _is_differentiable(x)}
    weights = list(model.parameters())
    for weight in weights:
        weight.grad = None
    with torch.enable_grad(), _fixed_seed(device):
        inputs = {name: leaf * 1 for name, leaf in leaves.items()}  # methods may write into their inputs
        result = call(model, inputs.pop("", first), **{**others, **inputs})
        outputs = list(result) if isinstance(result, tuple) else [result]
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros((), device=device)
        for out in outputs:
            if out is not None:
                total = total + torch.mul(out, normal(generator, *out.shape).to(device)).sum()
        if total.requires_grad:
            total.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*leaves.values(), *weights)]
    return [None if out is None else torch.mul(out, 1).detach() for out in outputs], grads


def _is_differentiable(x: Any) -> bool:
    """Whether ``x`` is a floating-point tensor other than a mask."""
    return isinstance(x, Tensor) and x.is_floating_point() and not bool(((x == 0) | (x == 1)).all())


@contextlib.contextmanager
def _fixed_seed(device: torch.device) -> Iterator[None]:
    """Random numbers from a fixed seed; the states of the global generators are restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


@contextlib.contextmanager
def _full_precision_matmul() -> Iterator[None]:
    """fp32 matrix products in full fp32, whatever precision is set globally."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _randomized_copy(module: nn.Module, generator: torch.Generator) -> Any:
    """A copy in fp32 on the CPU, without hooks, with normal weights scaled by 1/√(inputs)."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        memo[id(parameter)] = nn.Parameter(scale * normal(generator, *parameter.shape))
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            memo[id(hooks)] = OrderedDict()  # hooks may hold anything, and would be called
    return copy.deepcopy(module, memo).eval()


def _is_close(one: Any, other: Any, floor: float = 0.0) -> bool:
    """Whether two results agree, relative to the norm of the second or to ``floor``, whichever is larger.

    Torch arithmetic turns a lazy attention map into a tensor.
    """
    if one is None or other is None:
        return one is other
    difference = torch.sub(one, other)
    return bool(difference.isfinite().all() and difference.norm() <= RTOL * max(float(torch.norm(other)), floor))
