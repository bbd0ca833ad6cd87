"""Fuzz test of the reader of parameters for surrogates, CSV and NPZ; the first byte of an input is its format."""

from __future__ import annotations

import io
import warnings

import numpy as np

from ds4sci.data.parameter_file import read_parameters

from .mutation import mutate, pick
from .reading import Violation, temporary_folder

NAMES = ("a", "b")


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return b"N" + file.getvalue()


TEXTS = [
    b"Ca,b\n1,2\n3,4\n",
    b"Cb,a\r\n-1e3,2.5\r\n\r\n",
    b'C"a","b"\n"1","2"\n',
    _npz(a=np.arange(3.0), b=np.arange(3)),
    _npz(parameters=np.ones((2, 2), np.float32)),
]
TOKENS = [b"a", b"b", b",", b"\n", b"\r", b'"', b"nan", b"inf", b"1e999", b"0x1", b"_", b"PK\x03\x04", b"<f8", b"|O"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    """Check that the file gives finite numbers, or a ``ValueError`` that names it."""
    path = temporary_folder() / ("x.npz" if data[:1] == b"N" else "x.csv")
    path.write_bytes(data[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read_parameters(path, NAMES)
        except ValueError as error:
            if type(error) is not ValueError or str(path) not in str(error):
                raise Violation(f"{type(error).__name__} does not name {path.name}: {error}") from error
            return
    if found.shape[1:] != (2,) or not len(found) or not np.isfinite(found).all():
        raise Violation(f"parameters of the shape {found.shape}, or not finite")
