"""Comparison of the tensors of a file with those of a model, and the error that lists what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ds4sci.nn.name_patterns import SHOWN, matching, shortened

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFit:
    """Division of the tensors of a model and of a file.

    loaded  names of the tensors that the model takes from the file
    unused  tensors of the file that the model does not take → the reason
    new     tensors of the model that keep their initial values
    """

    loaded: tuple[str, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()


@dataclass(frozen=True)
class FittedWeights:
    """Tensors of a file that fit a model.

    tensors  name in the model → tensor, all of the file
    fit      what the model takes of them
    format   of the file, for messages
    notice   origin and license, or empty
    """

    tensors: Mapping[str, Tensor]
    fit: WeightFit
    format: str
    notice: str


def fit_weights(
    model: Shapes,
    file: Shapes,
    *,
    source: Any,
    skip: Sequence[str] = (),
    new: Sequence[str] = (),
    is_optional: Callable[[str], bool] = lambda name: False,
    reason: Callable[[str], str] = lambda name: "the model has no such tensor",
    hint: str = "",
    remedies: bool = True,
) -> WeightFit:
    """Return which tensors the model takes from a file. Nothing is dropped silently.

    model, file  shapes by name; both are named as in the model
    source       path of the file, for messages
    skip         patterns of tensors of the file that may be left out, as of file names (``train.weights_skip``)
    new          patterns of tensors of the model that keep their initial values (``train.weights_new``)
    is_optional  whether a tensor of the file that the model lacks may be left out without ``skip``
    reason       why the model lacks a tensor of the file
    hint         last line of the error
    remedies     whether the error gives the keys of the run file that allow the differences

    Raises ValueError that lists, with counts, the tensors that the file lacks, those that the model lacks, and those
    with another shape; and for a pattern that matches nothing.
    """
    keeps = set(matching(new, model, "train.weights_new", "tensor of the model"))
    skips = set(matching(skip, file, "train.weights_skip", f"tensor of {source}"))
    unused = {name: "train.weights_new: the model keeps its initial values" for name in file if name in keeps}
    unused |= {
        name: "train.weights_skip" + ("" if name in model else f": {reason(name)}") for name in file if name in skips
    }
    surplus = [name for name in file if name not in model and name not in unused]
    unused |= {name: reason(name) for name in surplus if is_optional(name)}
    unwanted = [name for name in surplus if name not in unused]
    loaded = [name for name in file if name in model and name not in unused]
    missing = [name for name in model if name not in keeps and (name not in file or name in skips)]
    wrong = [name for name in loaded if tuple(file[name]) != tuple(model[name])]
    lines = []
    if missing:
        remedy = f". To start them from their initial values: {override('train.weights_new', missing, model)}"
        lines.append(
            f"{_count(missing)} of the model not in the file: {shortened(missing)}{remedy if remedies else ''}"
        )
    if unwanted:
        why = "; ".join(dict.fromkeys(reason(name) for name in unwanted))
        parameters = sum(math.prod(file[name]) for name in unwanted)
        remedy = f". To train without them: {override('train.weights_skip', unwanted, file)}"
        lines.append(
            f"{_count(unwanted)} of the file ({parameters:,} parameters) not in the model: {shortened(unwanted)}: "
            f"{why}{remedy if remedies else ''}"
        )
    if wrong:
        shown = [f"{name}: {list(file[name])} in the file, {list(model[name])} in the model" for name in wrong]
        lines.append(f"{_count(wrong)} with another shape: {shortened(shown)}")
    if lines:
        text = "\n".join(f"- {line}" for line in [*lines, *([hint] if hint else [])])
        raise ValueError(f"{source}: the weights do not fit the model:\n{text}")
    return WeightFit(tuple(loaded), unused, tuple(name for name in model if name in keeps))


def override(key: str, names: Sequence[str], among: Iterable[str]) -> str:
    """Return an override, quoted for a shell, of a list of patterns that match ``names`` and no other of ``among``."""
    others = {_group(name) for name in set(among) - set(names)}
    alone = {name for name in names if _group(name) in others or _group(name) == name}
    patterns = list(dict.fromkeys(name if name in alone else f"{_group(name)}.*" for name in names))
    more = ", …" if len(patterns) > SHOWN else ""
    return f"'{key}=[" + ", ".join(f'"{pattern}"' for pattern in patterns[:SHOWN]) + f"{more}]'"


def _group(name: str) -> str:
    """Return the first part of a name, or the first two of a head."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "heads" else 1])


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor{'s' * (len(names) != 1)}"
