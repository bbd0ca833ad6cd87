"""Fuzz test of the A3M reader, from files of HH-suite, ColabFold and MMseqs2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.data.alignments import msa

from .mutation import mutate, pick
from .reading import Violation, assert_equal, plain_text, read, temporary_folder

SEEDS = [
    *((Path(__file__).parents[1] / "fixtures").rglob("*.a3m")),
]
TEXTS = [path.read_bytes() for path in SEEDS] + [
    b"#4\t1\n>101\nACDE\n>a desc\nA-DE\n>b\nAcdC.DE\n\0>102\nWWW\n>c\nW-W\n\0",
    b"#A3M#\n>ss_pred\nCCCC\n>q\nACDE\n>x\nAC\nDE\n>y\n--..--\n",
    b">q\n-A-C-\n>r\nGxAyGC-\n>s\n-A-CG\n>s\n-A-CG\n",
]
TOKENS = [b">", b"\n>", b"\0>", b">ss_pred\n", b"#4,3\t1,1\n", b"#", b"-", b".", b"a", b"A", b"X", b"U", b"BJZ", b"*"]


def inputs(rng: np.random.Generator) -> bytes:
    return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)


def check(data: bytes) -> None:
    check_rows(data, "x.a3m", lambda text: len(re.findall(rb"(?:^|[\n\0])>", text)))


def check_rows(data: bytes, name: str, count: Callable[[bytes], int]) -> None:
    """Check that every row of a file called ``name`` is kept or excluded. ``count`` counts the rows of its text."""
    alignments = read(data, name, msa.read_all)
    if alignments is None:
        return
    for one in alignments:
        assert_equal("rows", len(one.msa.names) + sum(one.excluded.values()), one.rows)
        check_alignment(one.msa)
    text = plain_text(data)
    if text is not None:
        assert_equal("rows", sum(one.rows for one in alignments), count(text))


def check_alignment(alignment: msa.Msa) -> None:
    """Check shapes, letters and deletion counts, and that the alignment is unchanged after writing and reading A3M."""
    shape = (len(alignment.names), alignment.sequences.shape[1])
    if (
        alignment.sequences.shape != shape
        or alignment.deletions.shape != shape
        or (alignment.sequences[0] == GAP).any()
    ):
        raise Violation(f"names {shape[0]}, letters {alignment.sequences.shape}, deletions {alignment.deletions.shape}")
    if (alignment.sequences > GAP).any() or (alignment.deletions < 0).any():
        raise Violation("codes above the gap, or negative deletion counts")
    again = temporary_folder() / "again.a3m"
    msa.write_a3m(again, alignment)
    back = msa.read(again)
    assert_equal("rows after writing", back.names, alignment.names)
    if not np.array_equal(back.sequences, alignment.sequences) or not np.array_equal(
        back.deletions, alignment.deletions
    ):
        raise Violation("letters or deletions differ after writing and reading again")
