"""Parameters that are not trained, chosen by patterns of their names: ``model.freeze`` of the run file."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters whose names match one of ``patterns`` from training: they get no gradient.

    patterns  as of file names, matched with the whole name: ``trunk.*`` is every parameter of the module ``trunk``,
              ``*.bias`` every bias; an empty sequence freezes nothing

    Frozen parameters belong to no optimizer group, so no ZeRO stage keeps a state for them; checkpoints hold their
    values.

    Raises ValueError for a pattern that matches nothing, and if nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            some = ", ".join(names[:4])
            raise ValueError(f"model.freeze: {pattern!r} matches no parameter; parameters are {some}, …")
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model.freeze = {list(patterns)} leaves nothing to train")
