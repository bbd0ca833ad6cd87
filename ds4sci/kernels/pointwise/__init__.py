"""What fused operations do between their matrix products, a tile at a time.

Modules with the same functions: ``triton`` (GPUs), ``native`` (C++, CPUs) and ``plain`` (torch, any device). ``plain``
is the reference. An operation's implementation of a name calls the module that ``BACKENDS`` has for it.

Tiles are ``rows``, [rows, c] with stride 1 along c, or ``columns``, [c, columns] with stride 1 along the columns. Their
other stride is free. Sums over a tile, made in fp32 of few numbers at a time, are *added* to fp64 tensors, in an
order that depends on shapes alone: rounding does not grow with the number of rows or of tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from ds4sci.kernels.pointwise import native, plain, triton
from ds4sci.kernels.spec import Implementation, runs_anywhere

BACKENDS: dict[str, ModuleType] = {"triton": triton, "native": native, "tiled": plain}


def implementations(
    fused: Callable[[str], Callable[..., Tensor]],
    reference: Callable[..., Tensor],
    why_not: Callable[..., str | None] = runs_anywhere,
) -> tuple[Implementation, ...]:
    """Those of an operation whose ``fused(name)`` runs on the backend of that name, and its reference.

    ``why_not(name, …)`` tells what else keeps one from running; the first argument's tensor decides for the backend.
    """

    def refuses(name: str, backend: ModuleType) -> Callable[..., str | None]:
        def refuse(*args: Any, **kwargs: Any) -> str | None:
            reason: str | None = backend.why_not(args[0] if args else next(iter(kwargs.values())))
            return reason or why_not(name, *args, **kwargs)

        return refuse

    found = [Implementation(name, fused(name), refuses(name, backend)) for name, backend in BACKENDS.items()]
    return *found, Implementation("reference", reference, runs_anywhere)
