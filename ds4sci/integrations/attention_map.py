"""An attention map that is returned and seldom looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class AttentionMap:
    """The probabilities ``[…, k, q]`` or ``[…, q, k]`` of an attention, made when somebody first looks.

    A fused attention never has them whole, and the blocks that call it throw them away. Torch's functions, indexing
    and a tensor's attributes work on it; ``tensor()`` is the tensor itself. Its gradient goes where the map's would.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def tensor(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made

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
