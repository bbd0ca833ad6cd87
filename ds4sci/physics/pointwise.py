"""Whether a network treats every point by itself, which zero coordinate shift rests on: seen by moving one point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PROBED = 7
"""Points that are looked at."""

_PASSED: WeakKeyDictionary[Any, set[bool]] = WeakKeyDictionary()
"""Networks that were found pointwise, in training or in evaluation."""


def require_pointwise(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> None:
    """Raise ValueError if ``network`` mixes points. A network that passed is not looked at again in the same mode."""
    mode = bool(getattr(network, "training", False))
    try:
        if mode in _PASSED.get(network, set()):
            return
    except TypeError:  # not hashable, or has no weak references: looked at each time
        pass
    reason = mixes_points(network, functions, points)
    if reason is not None:
        raise ValueError(
            f"derivatives at points need a network that treats every point by itself: {reason}. Moving all points at "
            "once, as zero coordinate shift does, or summing over them, as the other ways do, would give a derivative "
            "of another thing. Take a network without it; batch normalisation over points is harmless in eval()"
        )
    with contextlib.suppress(TypeError):
        _PASSED.setdefault(network, set()).add(mode)


def mixes_points(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> str | None:
    """What mixes points in ``network`` as it is now (training or evaluation), or None.

    One of a few points is moved; the outputs at the others must stay as they were. A single point cannot mix. Buffers
    (running statistics) and the random generators are left as they were.
    """
    if points.shape[0] < 2:
        return None
    few = points[:PROBED].detach()
    moved = few.clone()
    reach = points.detach().amax(0) - points.detach().amin(0)
    moved[0] += 0.37 * torch.where(reach > 0, reach, torch.ones_like(reach))
    with torch.no_grad(), _as_before(network):
        first, seen = _followed(network, functions[:2], few)
        second, again = _followed(network, functions[:2], moved)
    if first.dim() < 2 or first.shape[1] != len(few):
        raise ValueError(f"the network's output is {list(first.shape)}: expected [functions, {len(few)} points, …]")
    if _same(first[:, 1:], second[:, 1:]):
        return None
    for name, kind, before in seen:
        after = next((x for other, _, x in again if other == name), before)
        if not _same_elsewhere(before, after, len(few)):
            return f"{name or 'the network'} ({kind}) changes at points that did not move when another one does"
    return "its output changes at points that did not move when another one does"


def _followed(network: Any, functions: Any, points: Tensor) -> tuple[Tensor, list[tuple[str, str, Tensor]]]:
    """The output, and those of the modules inside in the order of their calls."""
    seen: list[tuple[str, str, Tensor]] = []
    hooks = []
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():

            def keep(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                first = output[0] if isinstance(output, tuple) and output else output
                if isinstance(first, Tensor):
                    seen.append((name, type(module).__name__, first.clone()))

            hooks.append(module.register_forward_hook(keep))
    try:
        with torch.random.fork_rng(devices=[points.device] if points.is_cuda else []):
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
