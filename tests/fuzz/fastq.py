"""FASTQ as sequencers and their tools write it, wrapped or not."""

from __future__ import annotations

import numpy as np

from .indexing import indexed
from .mutation import mutate, pick
from .reading import plain_text, same

SHARE = 0.15
TEXTS = [
    b"@r1 first\nACGTN\n+\nIIII@\n@r2\nacgt\n+r2\n@@@@\n@r3\nGATTACA\n+\n+++++++\n",
    b"@w\nACGT\nACGT\n+\nIIII\n@III\n\n@v\nTTTT\n+\nIIII\n",
]
TOKENS = [b"@", b"\n@", b"+\n", b"@r1\nAC\n+\nII\n", b"N", b"U", b"R", b"I", b"-", b"*"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    store, accounted = indexed(data, "x.fq")
    text = plain_text(data)
    records = None if text is None else count(text)
    if records is not None:
        if store is not None:
            same("records", len(store), records)
        if accounted >= 0:
            same("records kept and left out", accounted, records)


def count(text: bytes) -> int | None:
    """RecordHeaders where each is four lines: name, letters, plus, as many qualities; None where that is not so."""
    lines = text.removesuffix(b"\n").split(b"\n")
    if len(lines) % 4:
        return None
    for name, letters, plus, qualities in zip(*(iter(lines),) * 4, strict=True):
        plain = letters.isalpha() and letters.isascii() and len(qualities) == len(qualities.strip()) == len(letters)
        if not (name.startswith(b"@") and plus.startswith(b"+") and plain):
            return None
    return len(lines) // 4
