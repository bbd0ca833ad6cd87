"""What a kernel is: one public function, one reference, implementations that may refuse with a reason, named cases.

``choose`` is the only dispatch. A call names an implementation, or the run file does (``[kernels]``, through
``prefer``), or the first willing one is taken in the order listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Implementation:
    """``run`` has the kernel's signature; ``why_not`` too, and says in a sentence why this one cannot run, or None.

    ``why_not`` looks at device, dtype and shape only.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None]


@dataclass(frozen=True)
class Case:
    """Named inputs, the same for tests and benchmarks. ``make(generator, dtype, device)`` gives keyword arguments."""

    name: str
    make: Callable[[torch.Generator, torch.dtype, torch.device], dict[str, Any]]


@dataclass(frozen=True)
class SizeSweep:
    """A family of cases whose sums have ``size`` summands: errors beside plain torch's must not grow with it.

    ``sizes`` rise. Tests take the first two; the nightly ones take all.
    """

    name: str
    case: Callable[[int], Case]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """An operation: ``reference`` is readable torch and, in fp64, the oracle; ``implementations`` best first.

    ``size_sweeps``: a family of cases for every sum whose length depends on the inputs; empty where there is none.
    """

    name: str
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]
    cases: tuple[Case, ...] = ()
    size_sweeps: tuple[SizeSweep, ...] = ()

    def get_implementation(self, name: str) -> Implementation:
        for implementation in self.implementations:
            if implementation.name == name:
                return implementation
        known = ", ".join(i.name for i in self.implementations)
        raise ValueError(f"{self.name} has no implementation {name!r}; there are: {known}")

    def __call__(self, *args: Any, implementation: str | None = None, **kwargs: Any) -> Any:
        """Run the named, else the preferred, else the first willing implementation; ValueError with every reason."""
        asked = implementation or _preferred.get(self.name)
        if asked is not None:
            chosen = self.get_implementation(asked)
            reason = chosen.why_not(*args, **kwargs)
            if reason is None:
                return chosen.run(*args, **kwargs)
            raise ValueError(f"{self.name}: implementation {asked!r} cannot run here: {reason}")
        reasons = []
        for candidate in self.implementations:
            reason = candidate.why_not(*args, **kwargs)
            if reason is None:
                return candidate.run(*args, **kwargs)
            reasons.append(f"{candidate.name}: {reason}")
        raise ValueError(f"{self.name}: no implementation can run here. " + " · ".join(reasons))


def assume_constant_result(function: F) -> F:
    """torch.compile calls ``function`` once and takes the result for a constant.

    ``torch.compiler.assume_constant_result`` does the same, and imports the whole compiler (seconds) to do it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def runs_anywhere(*args: Any, **kwargs: Any) -> None:
    """The ``why_not`` of an implementation that runs anywhere."""


_preferred: dict[str, str] = {}


def prefer(choices: Mapping[str, str], kernels: Mapping[str, Kernel]) -> None:
    """Fix implementations for this process (the run file's ``[kernels]``); ValueError on unknown names."""
    for operation, implementation in choices.items():
        if operation not in kernels:
            raise ValueError(f"[kernels] names {operation!r}, which is no operation; there are: {', '.join(kernels)}")
        kernels[operation].get_implementation(implementation)
    _preferred.clear()
    _preferred.update(choices)
