"""Variables of a surrogate: names and ranges of its parameters, and names and shapes of its outputs.

A dataset of a surrogate is a folder with ``variables.json`` and one subfolder of array shards for each *source*, such
as a cheap simulation, a better one and an experiment, all with the same variables:

    variables.json
    zeldovich/train-00000.safetensors, …
    experiment/train-00000.safetensors, …

An example has ``inputs`` [p], the parameters in their own units, and ``targets`` [s + cells]: s scalars, then the field
in row-major order. The first source in ``sources`` sets the units of the outputs, so that a model that is adapted to
another source keeps them:

    x' = 2 (x - low) / (high - low) - 1,    y' = (y - mean) / std,

mean and std over the first source's training examples: of each scalar, and for the field the mean of each cell and one
std of all cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ds4sci.data.array_shards import ArrayShards
from ds4sci.files import atomic_files

FILE = "variables.json"


@dataclass(frozen=True)
class Variables:
    """See the module.

    parameters   names, p
    low, high    float64 [p], the range from which the parameters are drawn
    scalars      names, s
    field        name of the field; empty if there is none
    field_shape  its shape; () if there is none
    sources      names of the sources, the first one of which sets the units
    """

    parameters: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    scalars: tuple[str, ...]
    field: str
    field_shape: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def cells(self) -> int:
        """Number of cells of the field."""
        return math.prod(self.field_shape) if self.field else 0

    @property
    def outputs(self) -> int:
        """Number of outputs: scalars and cells."""
        return len(self.scalars) + self.cells

    def normalized(self, parameters: np.ndarray) -> np.ndarray:
        """Return parameters [..., p] scaled from [low, high] to [-1, 1]."""
        return 2 * (parameters - self.low) / (self.high - self.low) - 1

    def split(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scalars [..., s] and field [..., *shape] of outputs [..., t]."""
        count = len(self.scalars)
        return outputs[..., :count], outputs[..., count:].reshape(*outputs.shape[:-1], *self.field_shape)

    def write(self, folder: Path) -> None:
        """Write ``variables.json`` into ``folder``."""
        ranges = zip(self.parameters, self.low.tolist(), self.high.tolist(), strict=True)
        tree: dict[str, Any] = {
            "parameters": {name: [low, high] for name, low, high in ranges},
            "scalars": list(self.scalars),
            "field": {"name": self.field, "shape": list(self.field_shape)} if self.field else None,
            "sources": list(self.sources),
        }
        atomic_files.replace_text(folder / FILE, json.dumps(tree, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Variables:
        """Read ``variables.json`` of ``folder``. Raises ValueError with file and key if it is missing or malformed."""
        file = folder / FILE
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(
                f"{file}: missing; a dataset of a surrogate names its parameters, scalars, field and sources there "
                "(see ds4sci.data.surrogate_variables)"
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: unreadable: {error}") from None
        try:
            names = tuple(map(str, tree["parameters"]))
            low, high = np.array([tree["parameters"][name] for name in names], np.float64).reshape(len(names), 2).T
            scalars, sources = tuple(map(str, tree["scalars"])), tuple(map(str, tree["sources"]))
            field = tree["field"] or {"name": "", "shape": []}
            shape = tuple(int(size) for size in field["shape"])
            made = cls(names, low, high, scalars, str(field["name"]), shape, sources)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{file}: malformed ({type(error).__name__}: {error}); expected parameters {{name: [low, high]}}, "
                "scalars [names], field {name, shape} or null, and sources [names]"
            ) from None
        if not names or not made.outputs or not sources or any(size < 1 for size in shape):
            raise ValueError(f"{file}: expected at least one parameter, one output and one source, and sizes above 0")
        if not np.all(np.isfinite(low) & np.isfinite(high) & (low < high)):
            wrong = names[int(np.argmin(np.isfinite(low) & np.isfinite(high) & (low < high)))]
            raise ValueError(f"{file}: parameters.{wrong}: expected [low, high] with low < high")
        return made

    def shards(self, folder: Path, source: str, split: str) -> ArrayShards:
        """Return the examples of a source in the dataset ``folder``, all of which are read and checked.

        Raises ValueError, with the file, for an unknown source, a damaged file, examples of another shape, and values
        that are not finite.
        """
        if source not in self.sources:
            raise ValueError(f"{folder / FILE}: no source {source!r}; it has {', '.join(self.sources)}")
        found = ArrayShards.find(folder / source, split)
        first = 0
        for file, end in zip(found.files, found.ends, strict=True):
            for number in range(first, end):
                self._check(file, number - first, *found[number])
            first = end
        return found

    def _check(self, file: Path, row: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        for what, values, count in (
            ("parameters", inputs, len(self.parameters)), ("outputs", targets, self.outputs),
        ):  # fmt: skip
            if values.shape != (count,):
                raise ValueError(
                    f"{file}: example {row} has {what} of the shape {list(values.shape)}; {FILE} names {count} {what}"
                )
            if not np.isfinite(values).all():
                place = int(np.argmin(np.isfinite(values)))
                name = self.parameters[place] if what == "parameters" else self.output_name(place)
                raise ValueError(
                    f"{file}: example {row}: {name} is {values[place]}; expected finite numbers. Remove the example"
                )

    def output_name(self, place: int) -> str:
        """Name of output ``place``: of a scalar, or of a cell such as ``density[3, 7]``."""
        if place < len(self.scalars):
            return self.scalars[place]
        cell = np.unravel_index(place - len(self.scalars), self.field_shape)
        return f"{self.field}[{', '.join(str(int(index)) for index in cell)}]"


@dataclass(frozen=True)
class Units:
    """Mean and standard deviation, float64 [t], of each output over the examples that set the units."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, variables: Variables, examples: ArrayShards) -> Units:
        """Return the units that ``examples`` set. An output that is constant has the unit 1."""
        targets = np.stack([targets for _, targets in examples]).astype(np.float64)
        mean, count = targets.mean(axis=0), len(variables.scalars)
        std = targets.std(axis=0)
        if variables.cells:
            std[count:] = np.sqrt(np.square(std[count:]).mean())
        return cls(mean, np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0))

    def normalized(self, outputs: np.ndarray) -> np.ndarray:
        """Return outputs [..., t] in these units."""
        return (outputs - self.mean) / self.std

    def physical(self, normalized: np.ndarray) -> np.ndarray:
        """Return outputs [..., t] in their own units."""
        return normalized * self.std + self.mean


class NormalizedShards(Sequence[tuple[np.ndarray, np.ndarray]]):
    """Examples in the units of a surrogate, float64."""

    def __init__(self, shards: ArrayShards, variables: Variables, units: Units) -> None:
        self.shards, self.variables, self.units = shards, variables, units
        self.files = shards.files

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[np.ndarray, np.ndarray]]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        inputs, targets = self.shards[index]
        return self.variables.normalized(inputs.astype(np.float64)), self.units.normalized(targets.astype(np.float64))
