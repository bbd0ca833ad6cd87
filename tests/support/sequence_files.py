"""Sequence files for tests, and the records of a store as text."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from ds4sci.data.sequences import SequenceStore
from ds4sci.types import RESIDUES


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def random_sequence(rng: np.random.Generator, length: int, letters: str = RESIDUES) -> str:
    """Return ``length`` uniformly sampled letters."""
    return "".join(rng.choice(list(letters), length))


def sequence_with_case(store: SequenceStore, record: int) -> str:
    """The sequence of a record as in its file: lower case where it is soft-masked."""
    upper = store.residues(record)
    return np.where(store.soft_mask(record), upper | 32, upper).astype(np.uint8).tobytes().decode()


def records_of(store: SequenceStore) -> list[tuple[str, str]]:
    return [(store.name(i), sequence_with_case(store, i)) for i in range(len(store))]


def file_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bgzip(data: bytes, block: int = 1000) -> bytes:
    """``data`` as bgzip writes it: gzip members with their size in an extra field, the last one empty."""
    members = []
    for at in [*range(0, len(data), block), len(data)]:
        part = data[at : at + block]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(part) + packer.flush()
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(packed) + 25)
        members.append(head + packed + struct.pack("<II", zlib.crc32(part), len(part)))
    return b"".join(members)
