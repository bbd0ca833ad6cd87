"""Pointwise functions of the fused operations between their matrix products, on one tile at a time. Internal.

The modules ``triton`` (GPUs), ``native`` (C++ on CPUs) and ``reference`` (torch, any device) define the same functions;
``reference`` documents them. ``BACKENDS`` maps the name of an implementation to its module.

Tiles are ``rows``, [rows, c] with stride 1 along c, or ``columns``, [c, columns] with stride 1 along the columns; the
other stride is arbitrary. Sums over a tile are computed in fp32 over few numbers at a time and *added* to fp64 tensors,
in an order that depends only on shapes: the rounding error does not grow with the number of rows or tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from ds4sci.kernels.pointwise import native, triton
from ds4sci.kernels.pointwise import reference as torch_backend
from ds4sci.kernels.spec import Implementation, runs_anywhere

BACKENDS: dict[str, ModuleType] = {"triton": triton, "native": native, "tiled": torch_backend}


def implementations(
    fused: Callable[[str], Callable[..., Tensor]],
    reference: Callable[..., Tensor],
    why_not: Callable[..., str | None] = runs_anywhere,
) -> tuple[Implementation, ...]:
    """Implementations of an operation: ``fused(name)`` on each backend, and the reference.

    A backend refuses by the first argument, a tensor. ``why_not(name, …)`` returns further reasons of the operation.
    """

    def refusal(name: str, backend: ModuleType) -> Callable[..., str | None]:
        def check(*args: Any, **kwargs: Any) -> str | None:
            reason: str | None = backend.why_not(args[0] if args else next(iter(kwargs.values())))
            return reason or why_not(name, *args, **kwargs)

        return check

    found = [Implementation(name, fused(name), refusal(name, backend)) for name, backend in BACKENDS.items()]
    return *found, Implementation("reference", reference, runs_anywhere)
