"""Fuzz inputs of the FASTA parser for stores, and damaged files of a store."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np

from ds4sci.data.sequences import SequenceStore, index, layout

from .indexing import index_twice
from .mutation import mutate, pick
from .reading import Violation, assert_equal, plain_text, temporary_folder

SHARE = 0.15
TEXTS = [
    b">a first\nACGTN\nacgtRY\n>b\nGATTACA\n\n;comment\n>c\nU\n" + b"ACGT" * 30 + b"\n",
    b">p1 some protein\nMKVLIPAEAG\nMKW*\n>p2\nmkvBZJUO\n>p3\nXXXX\n",
]
TOKENS = [b">", b"\n>", b">a\n", b"*", b"-", b";", b"N", b"U", b"E", b" ", b"@", b"LOCUS"]
FILES = [*(f"{name}.bin" for name in layout.BINARIES), *(f"{name}.npy" for name in layout.TABLES), layout.MANIFEST]
JSON = [b"{", b"}", b"[" * 5000, b'"', b"null", b"-1", b"1e400", b"NaN", b"\\ud800", b'"files":', b'"size":', b"true"]


def inputs(rng: np.random.Generator) -> bytes:
    """A FASTA file or, in a third of the cases, the name of a file of a store, a NUL and its damaged content."""
    if rng.random() < 2 / 3:
        return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)
    name = FILES[int(rng.integers(len(FILES)))]
    content = (_valid_store() / name).read_bytes()
    if name == layout.MANIFEST and rng.random() < 0.7:
        return name.encode() + b"\0" + _mutated_manifest(rng, content)
    return name.encode() + b"\0" + mutate(rng, content, [content], JSON)


def check(data: bytes) -> None:
    name, _, content = data.partition(b"\0")
    if name.decode("latin-1") in FILES:
        return _check_damaged(name.decode(), content)
    store, records_seen = index_twice(data, "x.fa")
    text = plain_text(data)
    if text is None or not re.match(rb"\s*[>;]", text):
        return None
    headers = len(re.findall(rb"^>", text, re.MULTILINE))
    if store is not None:
        assert_equal("records", len(store), headers)
        lines = [line for line in text.split(b"\n") if not line.startswith((b">", b";"))]
        letters = b"".join(lines).translate(None, b" \t\v\f*")
        assert_equal("residues", store.total, len(letters))
    if records_seen >= 0:
        outside = len(text[: re.search(rb"^>|\Z", text, re.MULTILINE).start()].strip()) > 0  # type: ignore[union-attr]
        if not outside or text.startswith(b">"):
            assert_equal("records kept and skipped", records_seen, headers)
    return None


@cache
def _valid_store() -> Path:
    source = temporary_folder() / "whole.fa"
    source.write_bytes(TEXTS[0])
    index([source], temporary_folder() / "whole", jobs=1)
    return temporary_folder() / "whole"


def _mutated_manifest(rng: np.random.Generator, content: bytes) -> bytes:
    """Valid JSON with one value of another type or size."""
    manifest = json.loads(content)
    place = manifest
    for _ in range(int(rng.integers(1, 4))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        others: list[object] = [None, -1, 0, 1, 1 << 70, 1.5, "x", [], {}, [[]], True, "\ud800"]
        if rng.random() < 0.2 and isinstance(place, dict):
            del place[key]
        else:
            place[key] = others[int(rng.integers(len(others)))]
        break
    return json.dumps(manifest).encode()


def _check_damaged(name: str, content: bytes) -> None:
    """Check that ``open``, a read or ``verify`` reports a damaged store, with an error that names it."""
    place = temporary_folder() / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_valid_store(), place)
    changed = content != (place / name).read_bytes()
    (place / name).write_bytes(content)
    try:
        store = SequenceStore.open(place)
        for record in range(len(store)):
            store.name(record), store.description(record), store.location(record)
            store.residues(record), store.soft_mask(record), store.unknown_mask(record)
        if len(store):
            store.find("a")
        store.verify()
    except (ValueError, KeyError) as error:
        if type(error) not in (ValueError, KeyError) or str(place) not in str(error):
            raise Violation(f"{type(error).__name__} does not name the store: {error}") from error
        return
    if changed and name != layout.MANIFEST:
        raise Violation(f"{name} was changed, and no check reported it")
