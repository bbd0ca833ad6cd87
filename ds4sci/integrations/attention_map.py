"""Attention map that is computed when it is first accessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class LazyAttentionMap:
    """Attention weights ``[…, k, q]`` or ``[…, q, k]`` that a method returns and its callers usually discard.

    A fused attention never materializes them, so they are computed on first access. torch functions, indexing and
    tensor attributes work on this object; ``tensor()`` returns the tensor itself. Gradients flow as through the map.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        if self._tensor is None:
            self._tensor = self._compute()
        return self._tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: x.tensor() if isinstance(x, cls) else x, (args, kwargs or {}))
        return function(*args, **kwargs)
