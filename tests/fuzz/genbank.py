"""Fuzz inputs of the GenBank and GenPept parser."""

from __future__ import annotations

import re

import numpy as np

from .indexing import index_twice
from .mutation import mutate, pick
from .reading import assert_equal, plain_text

SHARE = 0.15
TEXTS = [
    b"LOCUS       AB1  8 bp DNA\nDEFINITION  a thing\n            that goes on.\nACCESSION   AB1\nVERSION     AB1.2\n"
    b"FEATURES             Location\n     source          1..8\nORIGIN\n        1 acgtacgt\n//\n"
    b"LOCUS       AB3  4 bp DNA\nORIGIN      \n        1 ac gt\n//\n",
    b"GBBCT1.SEQ  Genetic Sequence Data Bank\n\nLOCUS       P1  6 aa\nORIGIN\n        1 mkvlip\n//\n\n"
    b"LOCUS       P2  70 aa\nORIGIN\n        1 " + b" ".join([b"mkvlipaeag"] * 6) + b"\n       61 mkvlipaeag\n//\n",
]
TOKENS = [
    b"LOCUS       ",
    b"\nLOCUS  x  4 bp\n",
    b"//\n",
    b"ORIGIN\n",
    b"VERSION     ",
    b"DEFINITION  ",
    b"        1 ",
    b"bp",
]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    store, _ = index_twice(data, "x.gb")
    text = plain_text(data)
    if store is not None and text is not None and re.match(rb"\s*(LOCUS|GBBCT1)", text):
        assert_equal("records", len(store), len(re.findall(rb"^//", text, re.MULTILINE)))
        assert_equal("records", len(store), len(re.findall(rb"^LOCUS", text, re.MULTILINE)))
