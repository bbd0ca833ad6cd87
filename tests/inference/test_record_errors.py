"""Errors of one record: which of them mean that memory is short, and how they are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ds4sci.inference.record_errors import explain, is_out_of_memory, naming


def real_errors() -> list[Exception]:
    """What torch and numpy raise where more memory is asked for than any machine has."""
    found: list[Exception] = []
    for allocate in (lambda: torch.empty(1 << 58, dtype=torch.uint8), lambda: np.empty(1 << 58, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        found.append(caught.value)
    return [*found, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")]


def test_memory_that_is_short_is_told_from_other_errors() -> None:
    for error in real_errors():
        assert is_out_of_memory(error)
        assert explain(error, 9000).startswith("out of memory at 9000 residues (")
        assert "\n" not in explain(error, 9000)
    for other in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("x: out of memory"),
        KeyError("k"),
    ):
        assert not is_out_of_memory(other)
    assert explain(ValueError("x.a3m: line 3: bad"), 5) == "x.a3m: line 3: bad"
    assert explain(KeyError("k"), 5) == "KeyError: 'k'"


def test_naming_a_record() -> None:
    told = r"in\.fa: line 3: record 'q': out of memory at 7 residues .*; leave it out"
    for error in real_errors():
        with pytest.raises(ValueError, match=told), naming("in.fa: line 3: record 'q'", 7, "leave it out"):
            raise error
    with pytest.raises(KeyError), naming("q", 7, "leave it out"):
        raise KeyError("k")
