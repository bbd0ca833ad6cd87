"""Detection of a sequence file's format, and dispatch to the parser of that format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from ds4sci.data.sequences import fasta_blocks, fastq, genbank
from ds4sci.data.sequences.chunks import Chunk

PARSERS = {"fasta": fasta_blocks.read_chunks, "fastq": fastq.read_chunks, "genbank": genbank.read_chunks}
"""Format → function (blocks, path) → chunks."""


def read_chunks(blocks: Iterable[bytes], path: str | Path) -> Iterator[Chunk]:
    """Parse a file of any supported format.

    ``blocks`` are the blocks of its text, ``path`` is for error messages. ``ValueError`` if the format is unknown.
    """
    remaining = iter(blocks)
    head = b""
    for block in remaining:
        head += block
        if head.strip():
            break
    yield from PARSERS[detect_format(head, path)](chain([head], remaining), path)


def detect_format(head: bytes, path: str | Path) -> str:
    """``fasta``, ``fastq`` or ``genbank``, from the first bytes of a file."""
    text = head.lstrip()
    first = text.partition(b"\n")[0][:40].decode("ascii", "backslashreplace")
    if text[:1] in (b">", b";"):
        return "fasta"
    if text[:1] == b"@":
        return "fastq"
    if re.search(rb"^LOCUS\s", head, re.MULTILINE):
        return "genbank"
    if re.search(rb"^>", head, re.MULTILINE):
        return "fasta"  # with text before the first record, which the FASTA parser reports
    if not text:
        raise ValueError(f"{path}: no record; expected FASTA ('>'), FASTQ ('@') or GenBank ('LOCUS')")
    raise ValueError(
        f"{path}: line {1 + head[: len(head) - len(text)].count(10)}: expected a FASTA ('>'), FASTQ ('@')"
        f" or GenBank ('LOCUS') record, got {first!r}; pass a file of one of these formats"
    )
