"""Kernel specifications and dispatch: a reference, implementations that may refuse with a reason, named cases.

``Kernel.__call__`` is the only dispatch. It runs the implementation that the call names, else the default set by
``set_default_implementations`` (the run file's ``[kernels]``), else the first one that does not refuse.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ds4sci.kernels.dtypes import dtype_name

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("ds4sci.kernels")
"""Level INFO, or the environment variable ``DS4SCI_LOG=kernels``, logs each choice once per operation and shape."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    run      has the kernel's signature
    why_not  has the same signature; returns one sentence that says why ``run`` cannot run, or None. It depends on
             device, dtype and shape only.
    """

    name: str
    run: Callable[..., Any]
    why_not: Callable[..., str | None]


@dataclass(frozen=True)
class Case:
    """Named inputs, shared by tests and benchmarks. ``make(generator, dtype, device)`` returns keyword arguments."""

    name: str
    make: Callable[[torch.Generator, torch.dtype, torch.device], dict[str, Any]]


@dataclass(frozen=True)
class SizeSweep:
    """A family of cases whose sums have ``size`` terms. Errors relative to plain torch must not grow with ``size``.

    ``sizes`` are in ascending order. Regular tests use the first two, nightly tests all of them.
    """

    name: str
    case: Callable[[int], Case]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """An operation.

    reference        readable torch; in fp64 it is the oracle
    implementations  in order of preference, the fastest first
    size_sweeps      one for every sum whose length depends on the inputs
    """

    name: str
    reference: Callable[..., Any]
    implementations: tuple[Implementation, ...]
    cases: tuple[Case, ...] = ()
    size_sweeps: tuple[SizeSweep, ...] = ()

    def get_implementation(self, name: str) -> Implementation:
        """The implementation called ``name``. Raises ValueError that lists the known names."""
        for implementation in self.implementations:
            if implementation.name == name:
                return implementation
        known = ", ".join(i.name for i in self.implementations)
        raise ValueError(f"{self.name} has no implementation {name!r}; expected one of: {known}")

    def __call__(self, *args: Any, implementation: str | None = None, **kwargs: Any) -> Any:
        """Run the operation. Raises ValueError with the reason of every implementation that refuses."""
        return self.select(*args, implementation=implementation, **kwargs).run(*args, **kwargs)

    def select(self, *args: Any, implementation: str | None = None, **kwargs: Any) -> Implementation:
        """The implementation that a call with these arguments runs. Raises ValueError like a call."""
        name = implementation or _defaults.get(self.name)
        if name is not None:
            chosen = self.get_implementation(name)
            reason = chosen.why_not(*args, **kwargs)
            if reason is not None:
                raise ValueError(f"{self.name}: implementation {name!r} cannot run here: {reason}")
            _report(self.name, name, (), args, kwargs)
            return chosen
        refusals: list[str] = []
        for candidate in self.implementations:
            reason = candidate.why_not(*args, **kwargs)
            if reason is None:
                _report(self.name, candidate.name, refusals, args, kwargs)
                return candidate
            refusals.append(f"{candidate.name}: {reason}")
        raise ValueError(f"{self.name}: no implementation can run here. " + " · ".join(refusals))


def assume_constant_result(function: F) -> F:
    """Make torch.compile call ``function`` once and treat the result as a constant.

    Same effect as ``torch.compiler.assume_constant_result``, which imports the whole compiler (seconds).
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def runs_anywhere(*args: Any, **kwargs: Any) -> None:
    """``why_not`` of an implementation that never refuses."""


def check_implementations(choices: Mapping[str, str], kernels: Mapping[str, Kernel]) -> None:
    """Raises ValueError for an unknown operation or implementation in ``choices``."""
    for operation, implementation in choices.items():
        if operation not in kernels:
            known = ", ".join(kernels)
            raise ValueError(f"[kernels] names the unknown operation {operation!r}; expected one of: {known}")
        kernels[operation].get_implementation(implementation)


_defaults: Mapping[str, str] = {}


@contextlib.contextmanager
def set_default_implementations(choices: Mapping[str, str], kernels: Mapping[str, Kernel]) -> Iterator[None]:
    """Within the block, calls without ``implementation=`` use ``choices`` (operation → implementation).

    The choices replace those of an enclosing block, which are restored at the end. They hold for all threads, because
    autograd recomputes checkpointed layers in threads of its own. Raises ValueError for unknown names.
    """
    global _defaults
    check_implementations(choices, kernels)
    before, _defaults = _defaults, dict(choices)
    try:
        yield
    finally:
        _defaults = before


_logged: set[tuple[str, str, str]] = set()
_warned: set[str] = set()


def _report(name: str, chosen: str, refusals: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Log the choice once per operation and shape; warn once per operation if a faster one refuses on a GPU."""
    if torch.compiler.is_compiling():
        return
    if refusals and name not in _warned and _on_gpu([*args, *kwargs.values()]):
        _warned.add(name)
        warnings.warn(
            f"ds4sci: {name} runs on the GPU as {chosen!r}, because faster implementations refuse: "
            + " · ".join(refusals),
            RuntimeWarning,
            stacklevel=4,
        )
    if not _logging_enabled():
        return
    named = [*enumerate(args), *kwargs.items()]
    shape = ", ".join(f"{key} {_describe(x)}" for key, x in named if isinstance(x, torch.Tensor))
    if (name, chosen, shape) not in _logged:
        _logged.add((name, chosen, shape))
        reasons = "; refused: " + " · ".join(refusals) if refusals else ""
        logger.info("%s (%s): %s%s", name, shape, chosen, reasons)


def _describe(x: torch.Tensor) -> str:
    return f"{dtype_name(x.dtype)}{list(x.shape)}"


def _on_gpu(values: Sequence[Any]) -> bool:
    return any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in values)


def _logging_enabled() -> bool:
    if "kernels" in os.environ.get("DS4SCI_LOG", "").split(",") and not logger.isEnabledFor(logging.INFO):
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    return logger.isEnabledFor(logging.INFO)
