"""Fuzz inputs of the protein FASTA parser for prediction."""

from __future__ import annotations

import re

import numpy as np

from ds4sci.data.sequences import fasta_records
from ds4sci.types import RESIDUES

from .mutation import mutate, pick
from .reading import Violation, assert_equal, plain_text, read

TEXTS = [
    b">one two three\nACDE\n FGH \n\n>2\nacdx*\n;comment\n>sp|P1|X_Y\nMKTAYIAKQRQISFVKSHFSRQLEERLG\nMKV\n",
    b">gene\nATGAAAACCGCGTATATTGCG\n\0>rare\nMKTAYBZJUOX\n\0",
    b";old comment\n>a\nMKV\n>b\n;inside\nMKW\n",
]
TOKENS = [b">", b"\n>", b">x\n", b"*", b"-", b"U", b"BJZO", b";", b" ", b"1"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    entries = read(data, "x.fa", fasta_records.read_entries)
    if entries is None:
        return
    readable = all(entry.error is None for entry in entries)
    if any((not entry.sequence and not entry.error) or set(entry.sequence) - set(RESIDUES + "X") for entry in entries):
        raise Violation("an empty sequence, or letters outside the alphabet")
    text = plain_text(data)
    if text is not None:
        assert_equal("entries", len(entries), len(re.findall(rb"(?:^|[\n\0])>", text)))
        if not readable:
            return
        lines = [line for line in re.split(rb"[\n\0]", text) if not line.startswith((b">", b";"))]
        letters = len("".join(b"\n".join(lines).decode("utf-8", "replace").split()).replace("*", ""))
        assert_equal("letters", sum(len(entry.sequence) for entry in entries), letters)
