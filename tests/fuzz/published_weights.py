"""Fuzz inputs of the readers of published parameters: damaged ``.npz``, ``.pt`` and safetensors files."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

from tests.support import synthetic_weights as synthetic

from .mutation import mutate, pick
from .reading import Violation, temporary_folder

SHARE = 0.02
SUFFIXES = (".npz", ".pt", ".safetensors")
TOKENS = [b"PK\x03\x04", b"\x93NUMPY", b"'descr': '|O'", b"\x80\x02", b"cposix\nsystem\n", b"{}", b"\xff" * 8]
PARTS = ("predicted_lddt_head", "transition1")


@cache
def _valid() -> dict[str, bytes]:
    """A few arrays of a small model in each format."""
    from ds4sci.models.published_weights import read_weights, write_weights

    tree = {name: shape for name, shape in synthetic.shapes(synthetic.SMALL).items() if any(p in name for p in PARTS)}
    seed = temporary_folder() / "seed.npz"
    np.savez(seed, **synthetic.parameters(tree))
    tensors = read_weights(seed).tensors
    write_weights(seed.with_suffix(".pt"), tensors, "openfold")
    write_weights(seed.with_suffix(".safetensors"), tensors, "ds4sci")
    return {suffix: seed.with_suffix(suffix).read_bytes() for suffix in SUFFIXES}


def inputs(rng: np.random.Generator) -> bytes:
    """The ending of a file, a NUL and its damaged content."""
    suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))]
    content = _valid()[suffix]
    return suffix.encode() + b"\0" + mutate(rng, content, [pick(rng, list(_valid().values()))], TOKENS)


def check(data: bytes) -> None:
    from ds4sci.models.published_weights import read_weights
    from ds4sci.models.published_weights.inspection import describe

    ending, _, content = data.partition(b"\0")
    suffix = ending.decode("latin-1")
    if suffix not in SUFFIXES:
        return
    file = temporary_folder() / f"x{suffix}"
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            weights = read_weights(file)
        except ValueError as error:
            if str(file) not in str(error):
                raise Violation(f"the error does not name the file: {error}") from error
            return
        if len(weights.tensors) < weights.stored:
            raise Violation(f"{weights.stored} arrays became {len(weights.tensors)} tensors")
        describe(file)
