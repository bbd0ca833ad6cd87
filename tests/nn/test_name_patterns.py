"""Patterns of names: order, repeats, and the message for a pattern that matches nothing."""

from __future__ import annotations

import re

import pytest
from torch import nn

from ds4sci.models.weight_fit import fit_weights
from ds4sci.nn.low_rank import LowRankConfig, add_low_rank
from ds4sci.nn.name_patterns import freeze_parameters, matching


def test_names_are_listed_once_in_the_order_of_the_patterns() -> None:
    names = ["a.weight", "b.bias", "a.bias"]
    assert matching(["*.bias", "a.*"], names, "key", "name") == ["b.bias", "a.bias", "a.weight"]
    assert matching([], names, "key", "name") == []


def test_every_key_has_the_same_message() -> None:
    """More names than are shown, in alphabetical order."""
    model = nn.ModuleDict({letter: nn.Linear(2, 2, bias=False) for letter in "fedcba"})
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    shown = "a.weight, b.weight, c.weight, d.weight, e.weight, … and 1 more"
    layers = "a, b, c, d, e, … and 1 more"
    calls = {
        f"model.freeze: 'x*' matches no parameter; names are {shown}": lambda: freeze_parameters(model, ["x*"]),
        f"train.weights_skip: 'x*' matches no tensor of w.pt; names are {shown}": (
            lambda: fit_weights(shapes, shapes, source="w.pt", skip=["x*"])
        ),
        f"model.lora.target_modules: 'x*' matches no linear layer; names are {layers}": (
            lambda: add_low_rank(model, LowRankConfig(target_modules=("x*",)))
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()
