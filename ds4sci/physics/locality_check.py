"""Check that a network treats every point independently, and that it is smooth in the points, by moving one point.

Zero coordinate shift requires the first property, derivatives of second order the second.
"""

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

PROBE_POINTS = 7
"""Number of points that the check evaluates."""

PIECEWISE_LINEAR = frozenset(
    {
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "hardtanh", "hardtanh_",
        "hardsigmoid", "threshold", "threshold_", "hardshrink", "softshrink",
    }
)  # fmt: skip
"""torch's activation functions whose second derivative is 0 wherever it exists."""

_CHECKED: WeakKeyDictionary[Any, dict[bool, str | None]] = WeakKeyDictionary()
"""Network that passed the check → {training mode: its piecewise linear functions, or None}."""


def require_pointwise(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> str | None:
    """The piecewise linear functions of ``network``, or None. Raises ValueError if the network mixes points.

    A network that passed is not checked again in the same mode (training or evaluation).
    """
    mode = bool(getattr(network, "training", False))
    try:
        checked = _CHECKED.get(network, {})
        if mode in checked:
            return checked[mode]
    except TypeError:  # not hashable, or no weak references: checked at each call
        pass
    reason, piecewise_linear = _probe(network, functions, points)
    if reason is not None:
        raise ValueError(
            f"derivatives at points need a network that treats every point independently: {reason}. Zero coordinate "
            "shift moves all points at once, and the other methods sum over them, so the result would not be the "
            "derivative at each point. Remove this module; batch normalization over points is allowed in eval()"
        )
    with contextlib.suppress(TypeError):
        _CHECKED.setdefault(network, {})[mode] = piecewise_linear
    return piecewise_linear


def warn_piecewise_linear(names: str) -> None:
    """Warn that a second derivative is requested of a network with the piecewise linear functions ``names``."""
    warnings.warn(
        "a derivative of second or higher order is requested of a network that is piecewise linear in the points: "
        f"{names}. The second derivative of these functions is 0 almost everywhere; use a smooth activation function "
        "(tanh, silu, gelu, sin)",
        UserWarning,
        stacklevel=4,
    )


def mixes_points(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> str | None:
    """The module that mixes points in ``network`` in its current mode (training or evaluation), or None.

    Moves one of a few points: the outputs at the others must not change. A single point cannot be mixed. Buffers
    (running statistics) and the random states are restored.
    """
    return _probe(network, functions, points)[0]


def _probe(network: Callable[[Any, Tensor], Tensor], functions: Any, points: Tensor) -> tuple[str | None, str | None]:
    """The module that mixes points, and the piecewise linear functions of the points; None for neither."""
    few = points[:PROBE_POINTS].detach()
    moved = few.clone()
    extent = points.detach().amax(0) - points.detach().amin(0)
    moved[0] += 0.37 * torch.where(extent > 0, extent, torch.ones_like(extent))
    with torch.no_grad(), _preserve_buffers(network):
        output, trace = _traced_call(network, functions[:2], few)
        moved_output, moved_trace = _traced_call(network, functions[:2], moved)
    piecewise_linear = _names_of_changed(trace.piecewise_linear, moved_trace.piecewise_linear)
    if output.dim() < 2 or output.shape[1] != len(few):
        raise ValueError(f"the network's output is {list(output.shape)}: expected [functions, {len(few)} points, …]")
    if _is_equal(output[:, 1:], moved_output[:, 1:]):
        return None, piecewise_linear
    for name, kind, before in trace.outputs:
        after = next((x for other, _, x in moved_trace.outputs if other == name), before)
        if not _is_equal_elsewhere(before, after, len(few)):
            where = f"{name or 'the network'} ({kind})"
            return f"{where} changes at points that did not move when another point moves", piecewise_linear
    return "its output changes at points that did not move when another point moves", piecewise_linear


@dataclass
class _Trace:
    """Tensors recorded during a call.

    outputs           (name, class, output) of each module, in the order of calls
    piecewise_linear  (description, input) of each call of a piecewise linear function
    """

    outputs: list[tuple[str, str, Tensor]] = field(default_factory=list)
    piecewise_linear: list[tuple[str, Tensor]] = field(default_factory=list)


class _PiecewiseLinearRecorder(TorchFunctionMode):
    """Records the inputs of piecewise linear functions.

    call_stack  (name, class) of the modules that are being called
    """

    def __init__(self, trace: _Trace, call_stack: list[tuple[str, str]]) -> None:
        super().__init__()
        self.trace, self.call_stack = trace, call_stack

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in PIECEWISE_LINEAR and args and isinstance(args[0], Tensor):
            where, kind = self.call_stack[-1] if self.call_stack else ("", "")
            is_activation = hasattr(nn.modules.activation, kind)
            what = kind if is_activation else f"{name.strip('_')} in {kind}" if kind else name.strip("_")
            self.trace.piecewise_linear.append((f"{where} ({what})" if where else what, args[0].clone()))
        return func(*args, **(kwargs or {}))


def _names_of_changed(before: list[tuple[str, Tensor]], after: list[tuple[str, Tensor]]) -> str | None:
    """Descriptions of the functions whose input depends on the points, without repetition."""
    found = [
        what for (what, x), (_, y) in zip(before, after, strict=False) if x.shape != y.shape or not torch.equal(x, y)
    ]
    return ", ".join(dict.fromkeys(found)) or None


def _traced_call(network: Any, functions: Any, points: Tensor) -> tuple[Tensor, _Trace]:
    """The output of the network, and the trace of the call."""
    trace = _Trace()
    call_stack: list[tuple[str, str]] = []
    hooks = []
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():

            def enter(module: nn.Module, _: Any, name: str = name) -> None:
                call_stack.append((name, type(module).__name__))

            def record(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                call_stack.pop()
                first = output[0] if isinstance(output, tuple) and output else output
                if isinstance(first, Tensor):
                    trace.outputs.append((name, type(module).__name__, first.clone()))

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(record)]
    try:
        with (
            _PiecewiseLinearRecorder(trace, call_stack),
            torch.random.fork_rng(devices=[points.device] if points.is_cuda else []),
        ):
            torch.manual_seed(0)
            output = network(functions, points)
    finally:
        for hook in hooks:
            hook.remove()
    return output, trace


@contextlib.contextmanager
def _preserve_buffers(network: Any) -> Iterator[None]:
    """Restore buffers afterwards: batch normalization updates its statistics at each call."""
    buffers = list(network.named_buffers()) if isinstance(network, nn.Module) else []
    saved = [(buffer, buffer.clone()) for _, buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs agree within rounding. Outputs that are not finite count as equal."""
    limit = 10 * torch.finfo(one.dtype).eps ** 0.75 * float(one.abs().amax()) if one.numel() else 0.0
    return bool(((one - other).abs() <= limit).all()) or not bool(torch.isfinite(one).all())


def _is_equal_elsewhere(before: Tensor, after: Tensor, count: int) -> bool:
    """Whether a module's output is unchanged at all of ``count`` points except the first."""
    if before.shape != after.shape or not before.is_floating_point():
        return True
    for axis, size in enumerate(before.shape):
        if size == count:
            index = (slice(None),) * axis + (slice(1, None),)
            return _is_equal(before[index], after[index])
        if size == 2 * count:  # two functions and the points in one axis
            split = [x.unflatten(axis, (2, count)).narrow(axis + 1, 1, count - 1) for x in (before, after)]
            return _is_equal(*split)
    return True
