"""Fuzz inputs of the FASTQ parser, with one or several lines per sequence."""

from __future__ import annotations

import numpy as np

from .indexing import index_twice
from .mutation import mutate, pick
from .reading import assert_equal, plain_text

SHARE = 0.15
TEXTS = [
    b"@r1 first\nACGTN\n+\nIIII@\n@r2\nacgt\n+r2\n@@@@\n@r3\nGATTACA\n+\n+++++++\n",
    b"@w\nACGT\nACGT\n+\nIIII\n@III\n\n@v\nTTTT\n+\nIIII\n",
]
TOKENS = [b"@", b"\n@", b"+\n", b"@r1\nAC\n+\nII\n", b"N", b"U", b"R", b"I", b"-", b"*"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    store, records_seen = index_twice(data, "x.fq")
    text = plain_text(data)
    records = None if text is None else count_records(text)
    if records is not None:
        if store is not None:
            assert_equal("records", len(store), records)
        if records_seen >= 0:
            assert_equal("records kept and skipped", records_seen, records)


def count_records(text: bytes) -> int | None:
    """Number of records if each is four lines (name, letters, plus, as many qualities), otherwise None."""
    lines = text.removesuffix(b"\n").split(b"\n")
    if len(lines) % 4:
        return None
    for name, letters, plus, qualities in zip(*(iter(lines),) * 4, strict=True):
        is_valid = letters.isalpha() and letters.isascii() and len(qualities) == len(qualities.strip()) == len(letters)
        if not (name.startswith(b"@") and plus.startswith(b"+") and is_valid):
            return None
    return len(lines) // 4
