"""Copies of records, and of parts of records, into a new store."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds4sci.data.sequences import intervals, layout
from ds4sci.data.sequences.store import SequenceStore

_BLOCK = 1 << 26  # residues per copy


class Range(NamedTuple):
    """Residues ``start:stop`` of record ``record``."""

    record: int
    start: int
    stop: int


def write_subset(store: SequenceStore, chosen: Iterable[int | Range], out: str | Path) -> SequenceStore:
    """Write the chosen records (indices) and parts of records, in this order, to the store ``out``, and open it.

    A part of a record is named NAME:FIRST-LAST, with 1-based inclusive positions (as in samtools). ``out`` is written
    atomically. ``ValueError`` if nothing is chosen, one name is chosen twice, or ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: exists; remove it or choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    writer = layout.StoreWriter(partial)
    try:
        _copy_chosen(writer, store, chosen)
        if not writer.records:
            raise ValueError(f"{store.folder}: nothing chosen for {out}; pass record indices or ranges")
    except BaseException:
        writer.discard()
        raise
    writer.finish(
        {
            "alphabet": store.alphabet,
            "rules": {"subset of": str(store.folder)},  # so that `index` does not treat it as its own output
            "sources": store.manifest["sources"],
            "skipped": {},
            "replaced": {},
            "rare": {},
        }
    )
    partial.rename(out)
    return SequenceStore.open(out)


def _copy_chosen(writer: layout.StoreWriter, store: SequenceStore, chosen: Iterable[int | Range]) -> None:
    seen: set[str] = set()
    for item in _merge_adjacent(chosen, store):
        if isinstance(item, Range):
            names = [copy_range(writer, store, item)]
        else:
            copy_records(writer, store, *item)
            names = [store.name(index) for index in range(*item)]
        for name in names:
            if name in seen:
                raise ValueError(f"{store.folder}: {name!r} is chosen twice; names in a store must be unique")
            seen.add(name)


def copy_records(
    writer: layout.StoreWriter, store: SequenceStore, first: int, last: int, source: int | None = None
) -> None:
    """Copy records ``first`` … ``last`` − 1 of a store; ``source``, if given, replaces their source index."""
    if first == last:
        return
    begin, end = int(store.offsets[first]), int(store.offsets[last])
    shift = writer.total - begin
    _copy_residues(writer, store, begin, end)
    arrays = store.arrays
    of_names, of_descriptions = (
        arrays["name_offsets"][first : last + 1],
        arrays["description_offsets"][first : last + 1],
    )
    sources = arrays["sources"][first:last]
    writer.close_records(
        store.offsets[first + 1 : last + 1] + shift,
        arrays["names"][of_names[0] : of_names[-1]].tobytes(),
        np.diff(of_names),
        arrays["descriptions"][of_descriptions[0] : of_descriptions[-1]].tobytes(),
        np.diff(of_descriptions),
        sources if source is None else np.full_like(sources, source),
        arrays["lines"][first:last],
    )


def copy_range(writer: layout.StoreWriter, store: SequenceStore, part: Range) -> str:
    """Copy a part of a record as a new record; returns the name of that."""
    begin = int(store.offsets[part.record])
    length = int(store.offsets[part.record + 1]) - begin
    name, description = store.name(part.record), store.description(part.record).encode()
    if (part.start, part.stop) != (0, length):
        name = f"{name}:{part.start + 1}-{part.stop}"
    _copy_residues(writer, store, begin + part.start, begin + part.stop)
    writer.close_records(
        np.array([writer.total]),
        name.encode(),
        np.array([len(name.encode())]),
        description,
        np.array([len(description)]),
        store.arrays["sources"][part.record : part.record + 1],
        store.arrays["lines"][part.record : part.record + 1],
    )
    return name


def _copy_residues(writer: layout.StoreWriter, store: SequenceStore, begin: int, end: int) -> None:
    for at in range(begin, end, _BLOCK):
        stop = min(at + _BLOCK, end)
        masks = (intervals.clip(store.arrays[name], at, stop) for name in ("soft", "unknown"))
        writer.extend(store.arrays["residues"][at:stop], *masks)


def _merge_adjacent(chosen: Iterable[int | Range], store: SequenceStore) -> Iterator[tuple[int, int] | Range]:
    """Merge consecutive indices into (first, last + 1), as one copy of many records is faster; yield ranges as is."""
    first = last = 0
    for item in chosen:
        if not isinstance(item, tuple) and not 0 <= item < len(store):
            raise IndexError(f"{store.folder} has {len(store)} records; there is no record {item}")
        if not isinstance(item, tuple) and first < last == item:
            last += 1
            continue
        if first < last:
            yield first, last
        first, last = (0, 0) if isinstance(item, tuple) else (int(item), int(item) + 1)
        if isinstance(item, tuple):
            if not len(store.residues(*item)):  # raises if the record has no such part
                raise ValueError(f"{store.location(item[0])}: an empty range was chosen; choose one residue or more")
            yield Range(*item)
    if first < last:
        yield first, last
