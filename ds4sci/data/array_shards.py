"""Examples stored as arrays of one shape, in shards: safetensors files ``SPLIT-NNNNN.safetensors``.

A shard holds the tensors ``inputs`` [k, …] and ``targets`` [k, …] of k examples. Shards are memory-mapped; an example
is read when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ds4sci.files import atomic_files

NAMES = ("inputs", "targets")


def write_shard(folder: Path, split: str, number: int, inputs: np.ndarray, targets: np.ndarray) -> Path:
    """Write one shard and return its path. Raises ValueError if ``inputs`` and ``targets`` differ in length."""
    if len(inputs) != len(targets):
        raise ValueError(f"{split} shard {number}: {len(inputs)} inputs, but {len(targets)} targets")
    path = folder / f"{split}-{number:05d}.safetensors"
    arrays = {"inputs": np.ascontiguousarray(inputs), "targets": np.ascontiguousarray(targets)}
    with atomic_files.replacing(path) as handle:
        handle.write(save(arrays))
    return path


class ArrayShards(Sequence[tuple[np.ndarray, np.ndarray]]):
    """The examples of one split, as (input, target) arrays. Indexing reads one example."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._open: dict[int, Any] = {}
        counts = []
        for file in self.files:
            shapes = self._shapes(file)
            if len({shape[0] for shape in shapes.values()}) != 1:
                raise ValueError(f"{file}: inputs and targets differ in length: {shapes}")
            counts.append(shapes["inputs"][0])
        self._ends = list(accumulate(counts))

    @classmethod
    def find(cls, folder: Path, split: str) -> ArrayShards:
        """The shards of ``split`` in ``folder``, by name. Raises ValueError if there are none or one is malformed."""
        files = sorted(folder.glob(f"{split}-*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: no file {split}-*.safetensors; expected a dataset of arrays")
        return cls(files)

    @property
    def ends(self) -> tuple[int, ...]:
        """Number of examples up to the end of each file."""
        return tuple(self._ends)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (self._ends[shard - 1] if shard else 0)
        if shard not in self._open:
            self._open[shard] = safe_open(self.files[shard], framework="numpy")
        handle = self._open[shard]
        return tuple(handle.get_slice(name)[row] for name in NAMES)

    @staticmethod
    def _shapes(file: Path) -> dict[str, list[int]]:
        try:
            with safe_open(file, framework="numpy") as handle:
                missing = set(NAMES) - set(handle.keys())
                if missing:
                    raise ValueError(f"{file}: no tensor {', '.join(sorted(missing))}; expected inputs and targets")
                return {name: handle.get_slice(name).get_shape() for name in NAMES}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: not a readable safetensors file: {error}") from None
