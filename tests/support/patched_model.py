"""Comparison of a model with a patched copy, by the rule of tests/support/kernel_contract.py.

In every output and every gradient of a weight, the error of the patched copy is at most 3 times that of the model
itself in the same dtype. Both errors are measured against the model in fp64.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ds4sci.integrations import patch, patching
from ds4sci.integrations.replacement import PatchedMethod

Call = Callable[[Any, Callable[[torch.Tensor], torch.Tensor]], list[torch.Tensor]]
"""``call(model, leaf)`` runs the model and returns its outputs. ``leaf`` copies an input and makes it require a
gradient."""
BIG = 1e18
"""Counterpart of AlphaFold's mask value 1e9 for fp64: adding it to an attention logit removes all digits of the
logit."""


class WideTorch:
    """The torch module with float32 replaced by float64, for modules that cast to fp32 internally."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give all parameters random values: layers initialized to zero would hide errors in the layers before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return module


def outputs_and_gradients(
    model: nn.Module, call: Call, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> dict[str, Any]:
    """Outputs, and gradients of a weighted sum of them; None for unused weights."""
    leaves: list[torch.Tensor] = []

    def leaf(x: torch.Tensor) -> torch.Tensor:
        leaves.append(x.detach().to(dtype, copy=True).requires_grad_())
        return leaves[-1] * 1  # models may write into their inputs

    torch.manual_seed(7)  # dropout
    inside = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
    with inside:
        outputs = call(model, leaf)
    found: dict[str, Any] = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    total = torch.zeros((), dtype=torch.float64)
    for i, out in enumerate(outputs):
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (out.double() * weight).sum()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    total.backward()  # not autograd.grad, which reentrant checkpoints do not support
    names = [*(f"input {i}" for i in range(len(leaves))), *named]
    grads = {f"gradient of {name}": x.grad for name, x in zip(names, [*leaves, *named.values()], strict=True)}
    model.zero_grad(set_to_none=True)
    return found | grads


def check_accuracy(
    model: nn.Module,
    call: Call,
    *,
    narrow: Callable[[nn.Module], object] = lambda model: None,
    widen: Callable[[nn.Module], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    draws: int = 3,
) -> None:
    """Patch a copy of ``model`` and check its error over ``draws`` random weights, to reduce the effect of chance.

    narrow  converts the model to ``dtype``
    widen   context manager in which the fp64 model computes in fp64 throughout
    """
    errors, patched_errors = (defaultdict[str, list[torch.Tensor]](list) for _ in range(2))
    expected: dict[str, list[torch.Tensor]] = defaultdict(list)
    for seed in range(draws):
        torch.manual_seed(seed)  # for a model that draws numbers itself
        model = randomize(model.float(), seed)
        narrow(model)
        patched, wide = copy.deepcopy(model), copy.deepcopy(model).double()
        report = patch(patched, verbose=False)
        assert not report.skipped, report
        with widen(wide):
            oracle = outputs_and_gradients(wide, call, torch.float64)
        plain = outputs_and_gradients(model, call, dtype, autocast)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*falls back to its original")
            found = outputs_and_gradients(patched, call, dtype, autocast)
        for name, exact in oracle.items():
            if exact is None:
                assert plain[name] is None
                assert found[name] is None
                continue
            assert found[name].dtype == plain[name].dtype, name
            assert found[name].isfinite().all(), name
            expected[name].append(exact)
            errors[name].append(plain[name] - exact)
            patched_errors[name].append(found[name] - exact)
    eps = torch.finfo(autocast or dtype).eps
    scale = max(_norm(exact) for exact in expected.values())
    for name, exact in expected.items():
        # a gradient that is always 0 (softmax is invariant to a shift of all logits) is measured relative to the others
        size, largest = _norm(exact), _largest(exact)
        if size < 1e-12 * scale:
            size = largest = scale
        own_error, error = max(_norm(errors[name]), 0.3 * eps * size), _norm(patched_errors[name])
        assert error <= 3 * own_error, (
            f"{name}: error {error:.3g}, of the model itself {own_error:.3g}, norm {size:.3g}"
        )
        assert _largest(patched_errors[name]) <= 6 * max(_largest(errors[name]), eps * largest), name


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([x.double().norm() for x in tensors]).norm())


def _largest(tensors: list[torch.Tensor]) -> float:
    return max(float(x.abs().max()) for x in tensors)


def check_autocast_dtypes(model: nn.Module) -> set[str]:
    """Patch ``model`` and check that each replaced method has the output dtypes of the original under autocast.

    Returns the names of the replaced modules.
    """
    patch(model, verbose=False)
    names = set()
    for module in model.modules():
        for forward in [x for x in module.__dict__.values() if isinstance(x, PatchedMethod)]:
            replacement = patching.find_replacement(module)
            assert replacement is not None
            first, others = replacement.example(module, torch.Generator().manual_seed(0))
            original = getattr(type(module), forward.method)
            with torch.autocast("cpu", torch.bfloat16):
                outputs = forward(first, **others), original(module, first, **others)
            found, expected = ([x.dtype for x in (out if isinstance(out, tuple) else (out,))] for out in outputs)
            assert found == expected, replacement.name
            names.add(replacement.name)
    return names
