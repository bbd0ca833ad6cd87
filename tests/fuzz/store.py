"""FASTA into a sequence store; and a store's own files, damaged on the disk."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np

from ds4sci.data.sequences import SequenceStore, index, layout

from .indexing import indexed
from .mutation import mutate, pick
from .reading import Violation, folder, plain_text, same

SHARE = 0.15
TEXTS = [
    b">a first\nACGTN\nacgtRY\n>b\nGATTACA\n\n;comment\n>c\nU\n" + b"ACGT" * 30 + b"\n",
    b">p1 some protein\nMKVLIPAEAG\nMKW*\n>p2\nmkvBZJUO\n>p3\nXXXX\n",
]
TOKENS = [b">", b"\n>", b">a\n", b"*", b"-", b";", b"N", b"U", b"E", b" ", b"@", b"LOCUS"]
FILES = [*(f"{name}.bin" for name in layout.BINARIES), *(f"{name}.npy" for name in layout.TABLES), layout.MANIFEST]
JSON = [b"{", b"}", b"[" * 5000, b'"', b"null", b"-1", b"1e400", b"NaN", b"\\ud800", b'"files":', b'"size":', b"true"]


def inputs(rng: np.random.Generator) -> bytes:
    """A FASTA file; or, in a third of the cases, the name of a store's file, a NUL and its content."""
    if rng.random() < 2 / 3:
        return mutate(rng, pick(rng, TEXTS), TEXTS, TOKENS)
    name = FILES[int(rng.integers(len(FILES)))]
    content = (_whole() / name).read_bytes()
    if name == layout.MANIFEST and rng.random() < 0.7:
        return name.encode() + b"\0" + _other_manifest(rng, content)
    return name.encode() + b"\0" + mutate(rng, content, [content], JSON)


def check(data: bytes) -> None:
    name, _, content = data.partition(b"\0")
    if name.decode("latin-1") in FILES:
        return _damaged(name.decode(), content)
    store, accounted = indexed(data, "x.fa")
    text = plain_text(data)
    if text is None or not re.match(rb"\s*[>;]", text):
        return None
    headers = len(re.findall(rb"^>", text, re.MULTILINE))
    if store is not None:
        same("records", len(store), headers)
        lines = [line for line in text.split(b"\n") if not line.startswith((b">", b";"))]
        letters = b"".join(lines).translate(None, b" \t\v\f*")
        same("residues", store.total, len(letters))
    if accounted >= 0:
        outside = len(text[: re.search(rb"^>|\Z", text, re.MULTILINE).start()].strip()) > 0  # type: ignore[union-attr]
        if not outside or text.startswith(b">"):
            same("records kept and left out", accounted, headers)
    return None


@cache
def _whole() -> Path:
    source = folder() / "whole.fa"
    source.write_bytes(TEXTS[0])
    index([source], folder() / "whole", jobs=1)
    return folder() / "whole"


def _other_manifest(rng: np.random.Generator, content: bytes) -> bytes:
    """Whole JSON with one value of another kind or size."""
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


def _damaged(name: str, content: bytes) -> None:
    """A damaged store is refused on opening, or by ``verify``, in words that name it; reading it never does worse."""
    place = folder() / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_whole(), place)
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
        raise Violation(f"{name} was changed and nobody noticed")
