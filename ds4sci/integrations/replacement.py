"""What stands in the place of a module's method: our kernels where they serve the call, else the method itself."""

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


class Unserved(Exception):
    """This call is not ours, for the reason given: the module's own method makes it."""


Example = tuple[Tensor, dict[str, Any]]
"""A small call: the first argument, and the others by name."""


@dataclass(frozen=True)
class Replacement:
    """How the modules of one kind run on our kernels.

    kind     the class, by its qualified name or, with ``looks``, by the name that it has in the code it comes from
    serve    ``serve(module, first, implementation=…, **others)`` in place of the method, arguments named as the method
             names them; raises Unserved before it changes anything
    example  ``example(module, generator)``: a small call, by which the two are compared before one replaces the other
    kernels  names in ``KERNELS`` of what serves
    calls    submodules that are called, with their hooks and adapters, or that the method does not touch; of all
             others nothing but the weights is read
    looks    whether a module is of this kind, for kinds known by their attributes and not by name
    method   what is replaced
    """

    kind: str
    serve: Callable[..., Any]
    example: Callable[[Any, torch.Generator], Example]
    kernels: tuple[str, ...]
    calls: tuple[str, ...] = ()
    looks: Callable[[nn.Module], bool] | None = None
    method: str = "forward"

    @property
    def name(self) -> str:
        return self.kind.rpartition(".")[2]

    def passed_by(self, module: nn.Module) -> dict[str, nn.Module]:
        """Path → submodule that ``serve`` does not call."""
        return {
            path: part
            for path, part in module.named_modules()
            if path and not any(path == called or path.startswith(f"{called}.") for called in self.calls)
        }

    def why_not(self, module: nn.Module) -> str | None:
        """Why a module of this kind is left alone, from its class alone; None if nothing is against it."""
        if not isinstance(module.__dict__.get(self.method), Forward | None):
            return f"its {self.method} was replaced by someone else"
        for cls in type(module).__mro__:
            if f"{cls.__module__}.{cls.__qualname__}" == self.kind:
                same = getattr(type(module), self.method) is cls.__dict__.get(self.method)
                return None if same else f"a subclass with a {self.method} of its own"
        return None


@dataclass
class Calls:
    """Calls of a patched module so far, those inside a compiled graph aside.

    served  made by the kernels
    own     made by the module's own method: reason → how many
    """

    served: int = 0
    own: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        total = self.served + self.own.total()
        if not total:
            return "no call yet"
        reasons = "; ".join(f"{count} by its own method: {reason}" for reason, count in self.own.most_common())
        return f"{self.served} of {total} calls served" + (f"; {reasons}" if reasons else "")


@dataclass
class Run:
    """The calls of all modules that one ``patch`` replaced, and whether it was said that none of them was served."""

    calls: list[Calls] = field(default_factory=list)
    warned: bool = False

    def warn_if_none_served(self) -> None:
        if not self.warned and not any(one.served for one in self.calls):
            self.warned = True
            warnings.warn(
                f"ds4sci: none of the {len(self.calls)} patched modules was served so far, all run their own methods; "
                "print the report of patch() for the reasons",
                RuntimeWarning,
                stacklevel=4,
            )


class Forward:
    """Stands in ``module.__dict__`` under the method's name: class, weights and state dict stay as they are.

    The module is held weakly: a cycle would keep a deleted model's memory until the collector comes by. A copy or a
    pickle of the module gets its own. An option that has the method's own default is not handed on: the comparison
    before the replacement was made with it.
    """

    def __init__(self, module: nn.Module, replacement: Replacement, implementation: str | None, run: Run) -> None:
        own = getattr(type(module), replacement.method)
        self.method = replacement.method
        self.serve = replacement.serve
        self.implementation = implementation
        self.calls, self.run = Calls(), run
        run.calls.append(self.calls)
        parameters = list(inspect.signature(own).parameters.values())[1:]
        self.names = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        ours = inspect.signature(self.serve).parameters
        self.defaults = {
            p.name: p.default
            for p in parameters
            if p.name not in ours and isinstance(p.default, bool | int | float | str)
        }
        self.passed_by = {path: type(part) for path, part in replacement.passed_by(module).items()}
        self.module = weakref.ref(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module()
        assert module is not None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        well_formed = self.names and self.names[0] in given and len(given) == len(args) + len(kwargs)
        if well_formed:  # else its own method says what is wrong with the call
            first = given.pop(self.names[0])
            given = {name: x for name, x in given.items() if not self._is_default(name, x)}
            try:
                self._check(module)
                result = self.serve(module, first, implementation=self.implementation, **given)
            except Unserved as refusal:
                reason = str(refusal)
            else:
                if not torch.compiler.is_compiling():  # a count would make the compiler compile anew for each call
                    self.calls.served += 1
                return result
            if not torch.compiler.is_compiling():
                self._count_own(reason)
            warnings.warn(f"{type(module).__name__} runs its own {self.method}: {reason}", RuntimeWarning, stacklevel=2)
        return getattr(type(module), self.method)(module, *args, **kwargs)

    def _is_default(self, name: str, x: Any) -> bool:
        return name in self.defaults and type(x) is type(self.defaults[name]) and bool(x == self.defaults[name])

    def _count_own(self, reason: str) -> None:
        if self.calls.own:  # its second call, so that the model has been through once
            self.run.warn_if_none_served()
        self.calls.own[reason] += 1

    def _check(self, module: nn.Module) -> None:
        """Raise Unserved where reading a submodule's weights, or nothing, is no longer what calling it is."""
        for path, kind in self.passed_by.items():
            part = module.get_submodule(path)
            if type(part) is not kind:
                raise Unserved(f"its {path} has become a {type(part).__name__}")
            if "forward" in part.__dict__ or _hooks(part):
                raise Unserved(f"its {path} has hooks, which the kernels would pass by")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "module": self.module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.module = weakref.ref(state["module"])


def _hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its method; DeepSpeed's hooks are none of these.

    They bring the weights that ZeRO 3 has elsewhere, which DeepSpeed also does for whoever reads them.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(not hook.__module__.startswith("deepspeed.") for some in hooks for hook in some.values())
