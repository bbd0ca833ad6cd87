"""A model beside its patched twin, by the rule of tests/support/kernel_contract.py.

The patched one may err by 3 times what the model itself errs in the same dtype, measured against the model in fp64, in
every output and in the gradient of every weight.
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
"""``call(model, leaf)``: run it, inputs of which ``leaf`` makes copies that want gradients; the outputs."""
BIG = 1e18
"""What AlphaFold's 1e9 is to fp32, that is to fp64: so far above a score that adding it leaves nothing of the score."""


class WideTorch:
    """torch, but float32 means float64: for modules that cast to fp32 on their way."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere: what is initialised with zeros would hide everything before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return module


def results(model: nn.Module, call: Call, dtype: torch.dtype, autocast: torch.dtype | None = None) -> dict[str, Any]:
    """Outputs, and gradients of a weighted sum of them. A weight that is not used has None."""
    leaves: list[torch.Tensor] = []

    def leaf(x: torch.Tensor) -> torch.Tensor:
        leaves.append(x.detach().to(dtype, copy=True).requires_grad_())
        return leaves[-1] * 1  # models write into what they are given

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
    total.backward()  # and not autograd.grad, which reentrant checkpoints refuse
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
    """Patch a copy of ``model`` and compare, over ``draws`` of its weights: one alone may be lucky.

    ``narrow`` brings the model to ``dtype``; ``widen`` is a context in which the model in fp64 is fp64 throughout.
    """
    own, ours = (defaultdict[str, list[torch.Tensor]](list) for _ in range(2))
    wanted: dict[str, list[torch.Tensor]] = defaultdict(list)
    for seed in range(draws):
        model = randomize(model.float(), seed)
        narrow(model)
        twin, wide = copy.deepcopy(model), copy.deepcopy(model).double()
        report = patch(twin, verbose=False)
        assert not report.skipped, report
        with widen(wide):
            oracle = results(wide, call, torch.float64)
        plain = results(model, call, dtype, autocast)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*falls back to its original")
            got = results(twin, call, dtype, autocast)
        for name, want in oracle.items():
            if want is None:
                assert plain[name] is None
                assert got[name] is None
                continue
            assert got[name].dtype == plain[name].dtype, name
            assert got[name].isfinite().all(), name
            wanted[name].append(want)
            own[name].append(plain[name] - want)
            ours[name].append(got[name] - want)
    eps = torch.finfo(autocast or dtype).eps
    scale = max(_norm(want) for want in wanted.values())
    for name, want in wanted.items():
        # a gradient that is 0 for all inputs (softmax is blind to a shift of all scores) has the others for a measure
        size, largest = _norm(want), _furthest(want)
        if size < 1e-12 * scale:
            size = largest = scale
        honest, error = max(_norm(own[name]), 0.3 * eps * size), _norm(ours[name])
        assert error <= 3 * honest, f"{name}: error {error:.3g}, the model's own {honest:.3g}, size {size:.3g}"
        assert _furthest(ours[name]) <= 6 * max(_furthest(own[name]), eps * largest), name


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([x.double().norm() for x in tensors]).norm())


def _furthest(tensors: list[torch.Tensor]) -> float:
    return max(float(x.abs().max()) for x in tensors)


def check_autocast_dtypes(model: nn.Module) -> set[str]:
    """Patch ``model`` and compare each replaced method's dtypes under autocast with the method's own; their names."""
    patch(model, verbose=False)
    seen = set()
    for module in model.modules():
        for forward in [x for x in module.__dict__.values() if isinstance(x, PatchedMethod)]:
            replacement = patching.find_replacement(module)
            assert replacement is not None
            first, others = replacement.example(module, torch.Generator().manual_seed(0))
            own = getattr(type(module), forward.method)
            with torch.autocast("cpu", torch.bfloat16):
                ways = forward(first, **others), own(module, first, **others)
            got, want = ([x.dtype for x in (out if isinstance(out, tuple) else (out,))] for out in ways)
            assert got == want, replacement.name
            seen.add(replacement.name)
    return seen
