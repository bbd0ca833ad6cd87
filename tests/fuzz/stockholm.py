"""Fuzz test of the Stockholm reader: one block or wrapped, one alignment or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .a3m import check_rows
from .mutation import mutate, pick

TEXTS = [path.read_bytes() for path in (Path(__file__).parents[1] / "fixtures").rglob("*.sto")] + [
    b"# STOCKHOLM 1.0\n#=GF ID x\n\nq AC\nh A-\n#=GC RF xx\n\nq DE\nh DF\n//\n",
    b"# STOCKHOLM 1.0\nq ACDE\nh a.-E\n//\n# STOCKHOLM 1.0\np WWW\n//\n\0",
]
TOKENS = [b"//\n", b"# STOCKHOLM 1.0\n", b"#=GC RF xxx\n", b"\nq ACDE\n", b" ", b"-", b".", b"U", b"X", b"~", b"#"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    check_rows(data, "x.sto", count)


def count(text: bytes) -> int:
    """Count the names of all alignments: first words of lines that are neither blank nor annotations."""
    names: set[bytes] = set()
    total = 0
    for line in text.replace(b"\0", b"\n").split(b"\n"):
        if line.startswith(b"//"):
            total, names = total + len(names), set()
        elif not line.startswith(b"#") and line.decode("utf-8", "replace").strip():
            names.add(line.decode("utf-8", "replace").split()[0].encode())
    return total + len(names)
