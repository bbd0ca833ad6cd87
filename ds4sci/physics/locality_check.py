"""Whether a network treats every point by itself, which zero coordinate shift rests on, and whether it is smooth in
them, which derivatives of second order do: seen by moving one point."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PROBED = 7
"""Points that are looked at."""

PIECEWISE_LINEAR = frozenset(
    {
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "hardtanh", "hardtanh_",
        "hardsigmoid", "threshold", "threshold_", "hardshrink", "softshrink",
    }
)  # fmt: skip
"""Activation functions of torch whose second derivative is 0 wherever they have one."""

_PASSED: WeakKeyDictionary[Any, dict[bool, str | None]] = WeakKeyDictionary()
"""Networks that were found pointwise, in training or in evaluation, and what is piecewise linear in them."""


def require_pointwise(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> str | None:
    """Raise ValueError if ``network`` mixes points; else what is piecewise linear in it, or None.

    A network that passed is not looked at again in the same mode.
    """
    mode = bool(getattr(network, "training", False))
    try:
        known = _PASSED.get(network, {})
        if mode in known:
            return known[mode]
    except TypeError:  # not hashable, or has no weak references: looked at each time
        pass
    reason, kinks = _look(network, functions, points)
    if reason is not None:
        raise ValueError(
            f"derivatives at points need a network that treats every point by itself: {reason}. Moving all points at "
            "once, as zero coordinate shift does, or summing over them, as the other ways do, would give a derivative "
            "of another thing. Take a network without it; batch normalisation over points is harmless in eval()"
        )
    with contextlib.suppress(TypeError):
        _PASSED.setdefault(network, {})[mode] = kinks
    return kinks


def warn_of_kinks(kinks: str) -> None:
    """That second derivatives are asked of a network with piecewise linear functions, which ``kinks`` names."""
    warnings.warn(
        "a derivative of second or higher order is asked of a network that is piecewise linear in the points: "
        f"{kinks}. Its second derivative is 0 almost everywhere, and so is its share of such derivatives; take a "
        "smooth activation function (tanh, silu, gelu, sin)",
        UserWarning,
        stacklevel=4,
    )


def mixes_points(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> str | None:
    """What mixes points in ``network`` as it is now (training or evaluation), or None.

    One of a few points is moved; the outputs at the others must stay as they were. A single point cannot mix. Buffers
    (running statistics) and the random generators are left as they were.
    """
    return _look(network, functions, points)[0]


def _look(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> tuple[str | None, str | None]:
    """What mixes points, and what is piecewise linear in them; None for nothing."""
    few = points[:PROBED].detach()
    moved = few.clone()
    reach = points.detach().amax(0) - points.detach().amin(0)
    moved[0] += 0.37 * torch.where(reach > 0, reach, torch.ones_like(reach))
    with torch.no_grad(), _as_before(network):
        first, seen = _followed(network, functions[:2], few)
        second, again = _followed(network, functions[:2], moved)
    kinks = _that_move(seen.kinks, again.kinks)
    if first.dim() < 2 or first.shape[1] != len(few):
        raise ValueError(f"the network's output is {list(first.shape)}: expected [functions, {len(few)} points, …]")
    if _same(first[:, 1:], second[:, 1:]):
        return None, kinks
    for name, kind, before in seen.outputs:
        after = next((x for other, _, x in again.outputs if other == name), before)
        if not _same_elsewhere(before, after, len(few)):
            where = f"{name or 'the network'} ({kind})"
            return f"{where} changes at points that did not move when another one does", kinks
    return "its output changes at points that did not move when another one does", kinks


@dataclass
class _Seen:
    """Outputs of the modules in the order of their calls (name, class, tensor), and inputs of piecewise linear
    functions (what and where, tensor)."""

    outputs: list[tuple[str, str, Tensor]] = field(default_factory=list)
    kinks: list[tuple[str, Tensor]] = field(default_factory=list)


class _Kinks(TorchFunctionMode):
    """Keeps the inputs of piecewise linear functions; ``inside``: the modules that are being called."""

    def __init__(self, seen: _Seen, inside: list[tuple[str, str]]) -> None:
        super().__init__()
        self.seen, self.inside = seen, inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in PIECEWISE_LINEAR and args and isinstance(args[0], Tensor):
            where, kind = self.inside[-1] if self.inside else ("", "")
            own = hasattr(nn.modules.activation, kind)
            what = kind if own else f"{name.strip('_')} in {kind}" if kind else name.strip("_")
            self.seen.kinks.append((f"{where} ({what})" if where else what, args[0].clone()))
        return func(*args, **(kwargs or {}))


def _that_move(before: list[tuple[str, Tensor]], after: list[tuple[str, Tensor]]) -> str | None:
    """Those of the functions whose input depends on the points, each once."""
    found = [
        what for (what, x), (_, y) in zip(before, after, strict=False) if x.shape != y.shape or not torch.equal(x, y)
    ]
    return ", ".join(dict.fromkeys(found)) or None


def _followed(network: Any, functions: Any, points: Tensor) -> tuple[Tensor, _Seen]:
    """The output, and what was seen on the way to it."""
    seen = _Seen()
    inside: list[tuple[str, str]] = []
    hooks = []
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():

            def enter(module: nn.Module, _: Any, name: str = name) -> None:
                inside.append((name, type(module).__name__))

            def keep(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                inside.pop()
                first = output[0] if isinstance(output, tuple) and output else output
                if isinstance(first, Tensor):
                    seen.outputs.append((name, type(module).__name__, first.clone()))

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(keep)]
    try:
        with _Kinks(seen, inside), torch.random.fork_rng(devices=[points.device] if points.is_cuda else []):
            torch.manual_seed(0)
            output = network(functions, points)
    finally:
        for hook in hooks:
            hook.remove()
    return output, seen


@contextlib.contextmanager
def _as_before(network: Any) -> Iterator[None]:
    """Put buffers back: batch normalisation counts what it sees."""
    buffers = list(network.named_buffers()) if isinstance(network, nn.Module) else []
    kept = [(buffer, buffer.clone()) for _, buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def _same(one: Tensor, other: Tensor) -> bool:
    limit = 10 * torch.finfo(one.dtype).eps ** 0.75 * float(one.abs().amax()) if one.numel() else 0.0
    return bool(((one - other).abs() <= limit).all()) or not bool(torch.isfinite(one).all())


def _same_elsewhere(before: Tensor, after: Tensor, count: int) -> bool:
    """Whether a module's output stayed as it was at all points but the first."""
    if before.shape != after.shape or not before.is_floating_point():
        return True
    for axis, size in enumerate(before.shape):
        if size == count:
            rest = slice(1, None)
            index = (slice(None),) * axis + (rest,)
            return _same(before[index], after[index])
        if size == 2 * count:  # functions and points in one axis
            apart = [x.unflatten(axis, (2, count)).narrow(axis + 1, 1, count - 1) for x in (before, after)]
            return _same(*apart)
    return True
