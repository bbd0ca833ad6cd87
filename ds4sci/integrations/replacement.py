"""Replacement of a module's method: the kernels run the calls they support, the original method runs the others."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class UnsupportedCall(Exception):
    """The kernels do not support this call, for the reason given. The original method runs it."""


Example = tuple[Tensor, dict[str, Any]]
"""Arguments of a small call: the first one, and the others by name."""


@dataclass(frozen=True)
class Replacement:
    """How modules of one class run on the kernels.

    class_name         qualified name of the class; with ``matches``, its name in the code that it comes from
    run                ``run(module, first, implementation=…, **others)`` replaces the method and has its argument
                       names; raises ``UnsupportedCall`` before it changes anything
    example            ``example(module, generator)``: arguments of a small call, for the comparison with the method
    kernels            names in ``KERNELS`` of the kernels that ``run`` uses
    called_submodules  submodules that ``run`` calls, with their hooks and adapters, or that the method does not use; of
                       all other submodules ``run`` reads the weights only
    matches            whether a module has the attributes of this class; None = matched by name
    method             name of the method
    """

    class_name: str
    run: Callable[..., Any]
    example: Callable[[Any, torch.Generator], Example]
    kernels: tuple[str, ...]
    called_submodules: tuple[str, ...] = ()
    matches: Callable[[nn.Module], bool] | None = None
    method: str = "forward"

    @property
    def name(self) -> str:
        return self.class_name.rpartition(".")[2]

    def bypassed_submodules(self, module: nn.Module) -> dict[str, nn.Module]:
        """Path → submodule that ``run`` does not call."""
        return {
            path: part
            for path, part in module.named_modules()
            if path and not any(path == called or path.startswith(f"{called}.") for called in self.called_submodules)
        }

    def why_not(self, module: nn.Module) -> str | None:
        """Why the method of ``module`` must not be replaced, judged by its class and attributes; None if it may be."""
        if not isinstance(module.__dict__.get(self.method), PatchedMethod | None):
            return f"its {self.method} is already replaced by other code"
        for cls in type(module).__mro__:
            if f"{cls.__module__}.{cls.__qualname__}" == self.class_name:
                same = getattr(type(module), self.method) is cls.__dict__.get(self.method)
                return None if same else f"a subclass that overrides {self.method}"
        return None


@dataclass
class CallCounts:
    """Calls of a patched module so far, except those in a compiled graph.

    on_kernels  number of calls that ran on the kernels
    fallbacks   reason → number of calls that ran the original method
    """

    on_kernels: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        total = self.on_kernels + self.fallbacks.total()
        if not total:
            return "no calls yet"
        reasons = "; ".join(
            f"{count} by the original method: {reason}" for reason, count in self.fallbacks.most_common()
        )
        return f"{self.on_kernels} of {total} calls on kernels" + (f"; {reasons}" if reasons else "")


@dataclass
class FallbackMonitor:
    """Call counts of all modules that one ``patch`` replaced, and whether the warning about them was issued."""

    counts: list[CallCounts] = field(default_factory=list)
    warned: bool = False

    def warn_if_all_fall_back(self) -> None:
        if not self.warned and not any(one.on_kernels for one in self.counts):
            self.warned = True
            warnings.warn(
                f"ds4sci: none of the {len(self.counts)} patched modules has run on the kernels so far, all fell back "
                "to their original methods; print the report of patch() for the reasons",
                RuntimeWarning,
                stacklevel=4,
            )


class PatchedMethod:
    """Callable in ``module.__dict__`` under the method's name. Class, weights and state dict of the module are
    unchanged.

    The module is referenced weakly: a reference cycle would keep a deleted model in memory until the next garbage
    collection. A copy or pickle of the module gets its own ``PatchedMethod``. An option with the method's default value
    is not passed to the replacement, since the two were compared with that value.
    """

    def __init__(
        self, module: nn.Module, replacement: Replacement, implementation: str | None, monitor: FallbackMonitor
    ) -> None:
        original = getattr(type(module), replacement.method)
        self.method = replacement.method
        self.run = replacement.run
        self.implementation = implementation
        self.counts, self.monitor = CallCounts(), monitor
        monitor.counts.append(self.counts)
        parameters = list(inspect.signature(original).parameters.values())[1:]
        self.names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        supported = inspect.signature(self.run).parameters
        self.defaults = {
            p.name: p.default
            for p in parameters
            if p.name not in supported and isinstance(p.default, bool | int | float | str)
        }
        self.bypassed = {path: type(part) for path, part in replacement.bypassed_submodules(module).items()}
        self.module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        well_formed = self.names and self.names[0] in given and len(given) == len(args) + len(kwargs)
        if well_formed:  # otherwise the original method raises the TypeError
            first = given.pop(self.names[0])
            given = {name: x for name, x in given.items() if not self._is_default(name, x)}
            try:
                self._check_submodules(module)
                result = self.run(module, first, implementation=self.implementation, **given)
            except UnsupportedCall as error:
                reason = str(error)
            else:
                if not torch.compiler.is_compiling():  # a counter would make the compiler recompile at every call
                    self.counts.on_kernels += 1
                return result
            if not torch.compiler.is_compiling():
                self._count_fallback(reason)
            warnings.warn(
                f"{type(module).__name__} falls back to its original {self.method}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return getattr(type(module), self.method)(module, *args, **kwargs)

    def _is_default(self, name: str, x: Any) -> bool:
        return name in self.defaults and type(x) is type(self.defaults[name]) and bool(x == self.defaults[name])

    def _count_fallback(self, reason: str) -> None:
        if self.counts.fallbacks:  # its second call, so all of the model has run once
            self.monitor.warn_if_all_fall_back()
        self.counts.fallbacks[reason] += 1

    def _check_submodules(self, module: nn.Module) -> None:
        """Raise UnsupportedCall if calling a bypassed submodule now does more than its weights tell."""
        for path, kind in self.bypassed.items():
            part = module.get_submodule(path)
            if type(part) is not kind:
                raise UnsupportedCall(f"its {path} was replaced by a {type(part).__name__}")
            if "forward" in part.__dict__ or _has_hooks(part):
                raise UnsupportedCall(f"its {path} has hooks, which the kernels would not call")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "module": self.module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.module = weakref.ref(state["module"])


def _has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks other than DeepSpeed's.

    DeepSpeed's hooks gather the weights that ZeRO-3 has partitioned, which DeepSpeed also does when weights are read.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not hook.__module__.startswith("deepspeed.") for some in hooks for hook in some.values())
