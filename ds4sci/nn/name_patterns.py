"""Parameters, layers and tensors chosen by patterns of their names, as of file names; ``model.freeze`` of run files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn

SHOWN = 5
"""Names that a message lists before it counts the others."""


def matching(patterns: Sequence[str], names: Iterable[str], key: str, what: str) -> list[str]:
    """Return the ``names`` that match one of ``patterns``, in the order of the patterns, each once.

    key   of the patterns, and ``what`` the names are of, for the message

    Raises ValueError for a pattern that matches none.
    """
    names = list(names)
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise ValueError(f"{key}: {pattern!r} matches no {what}; names are {shortened(sorted(names))}")
        found.update(dict.fromkeys(matches))
    return list(found)


def shortened(names: Sequence[str]) -> str:
    """Return the first ``SHOWN`` names, and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f", … and {more:,} more" if more > 0 else "")


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters whose names match one of ``patterns`` from training: they get no gradient.

    patterns  as of file names, matched with the whole name: ``trunk.*`` is every parameter of the module ``trunk``,
              ``*.bias`` every bias; an empty sequence freezes nothing

    Frozen parameters belong to no optimizer group, so no ZeRO stage keeps a state for them; checkpoints hold their
    values.

    Raises ValueError for a pattern that matches nothing, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for name in matching(patterns, parameters, "model.freeze", "parameter"):
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model.freeze = {list(patterns)} leaves nothing to train")
