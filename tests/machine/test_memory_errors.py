"""Out-of-memory errors: detection, one-line messages, and the record named in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ds4sci.machine.memory_errors import describe_error, is_out_of_memory, name_memory_errors


def real_errors() -> list[Exception]:
    """Errors that torch and numpy raise when a program asks for more memory than any machine has."""
    found: list[Exception] = []
    for allocate in (lambda: torch.empty(1 << 58, dtype=torch.uint8), lambda: np.empty(1 << 58, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        found.append(caught.value)
    return [*found, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")]


def test_out_of_memory_is_distinguished_from_other_errors() -> None:
    for error in real_errors():
        assert is_out_of_memory(error)
        assert describe_error(error, 9000).startswith("out of memory at 9000 residues (")
        assert "\n" not in describe_error(error, 9000)
    for other in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("x: out of memory"),
        KeyError("k"),
    ):
        assert not is_out_of_memory(other)
    assert describe_error(ValueError("x.a3m: line 3: bad"), 5) == "x.a3m: line 3: bad"
    assert describe_error(KeyError("k"), 5) == "KeyError: 'k'"


def test_memory_errors_name_the_record() -> None:
    text = r"in\.fa: line 3: record 'q': out of memory at 7 residues .*; remove it"
    for error in real_errors():
        with (
            pytest.raises(ValueError, match=text),
            name_memory_errors("in.fa: line 3: record 'q'", 7, "remove it"),
        ):
            raise error
    with pytest.raises(KeyError), name_memory_errors("q", 7, "remove it"):
        raise KeyError("k")
