"""Names of version 0.1.0 that must not come back: ``tests/fixtures/old_names.json`` lists each with its new name."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLD_NAMES: list[list[str]] = json.loads((ROOT / "tests/fixtures/old_names.json").read_text(encoding="utf-8"))
"""``[kind, old, new]``; names of Python objects are dotted paths from ``ds4sci``, files are paths from the root."""


def resolve(path: str) -> Any:
    """The object at a dotted path, or None where there is none."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return None
            found = inspect.getattr_static(found, name)
        return found
    return None


def exists(kind: str, old: str) -> bool:
    """Whether the name is still there."""
    if kind == "file":
        return (ROOT / old).exists()
    if kind == "module":
        try:
            return importlib.util.find_spec(old) is not None
        except ModuleNotFoundError:
            return False
    if kind in ("argument", "field"):
        owner = resolve(old.rpartition(".")[0])
        name = old.rpartition(".")[2]
        if owner is None:
            return False
        if dataclasses.is_dataclass(owner) and name in {field.name for field in dataclasses.fields(owner)}:
            return True
        if hasattr(owner, "model_fields") and name in owner.model_fields:
            return True
        return callable(owner) and name in inspect.signature(owner).parameters
    found = resolve(old)
    return found is not None and not inspect.ismodule(found)


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in OLD_NAMES if kind not in ("config_key", "cli_value")}))
def test_no_old_name_is_left(kind: str) -> None:
    left = [f"{old} (now {new})" for k, old, new in OLD_NAMES if k == kind and exists(kind, old)]
    assert not left, f"old names of the kind {kind}: {left}"


def test_a_name_that_exists_is_found() -> None:
    """The check itself can fail."""
    assert exists("module", "ds4sci.kernels.varlen_attention")
    assert exists("function", "ds4sci.kernels.varlen_attention.varlen_attention")
    assert exists("argument", "ds4sci.kernels.evoformer_attention.evoformer_attention.pair_bias")
    assert exists("field", "ds4sci.bench.measurement.Measurement.title")
    assert exists("file", "launch/env.sh")
    assert not exists("function", "ds4sci.kernels.varlen_attention.nothing")
