"""Records, and parts of records, of stores → a new store."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ds4sci.data.sequences import intervals, layout
from ds4sci.data.sequences.store import SequenceStore

_AT_ONCE = 1 << 26  # residues copied at a time


class Range(NamedTuple):
    """Residues ``start:stop`` of record ``record``."""

    record: int
    start: int
    stop: int


def write_subset(store: SequenceStore, chosen: Iterable[int | Range], out: str | Path) -> SequenceStore:
    """Write the records (by index) or parts of records, in the order given, as the store ``out`` and open it.

    A part of a record is called NAME:FIRST-LAST, residues counted from 1, both included (as samtools does). ``out``
    appears whole or not at all. ``ValueError``: nothing chosen, a record chosen twice under one name, ``out`` exists.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out}: exists; remove it or choose another folder")
    aside = out.with_name(f".{out.name}.partial")
    if aside.exists():
        shutil.rmtree(aside)
    writer = layout.StoreWriter(aside)
    try:
        _copy_chosen(writer, store, chosen)
        if not writer.records:
            raise ValueError(f"{store.folder}: nothing chosen for {out}; give indices or ranges of records")
    except BaseException:
        writer.abandon()
        raise
    writer.finish(
        {
            "alphabet": store.alphabet,
            "rules": {"subset of": str(store.folder)},  # so that no index run takes it for its own
            "sources": store.manifest["sources"],
            "skipped": {},
            "replaced": {},
            "rare": {},
        }
    )
    aside.rename(out)
    return SequenceStore.open(out)


def _copy_chosen(writer: layout.StoreWriter, store: SequenceStore, chosen: Iterable[int | Range]) -> None:
    seen: set[str] = set()
    for stretch in _stretches(chosen, store):
        if isinstance(stretch, Range):
            names = [copy_range(writer, store, stretch)]
        else:
            copy_records(writer, store, *stretch)
            names = [store.name(index) for index in range(*stretch)]
        for name in names:
            if name in seen:
                raise ValueError(f"{store.folder}: {name!r} is chosen twice; a store's names differ")
            seen.add(name)


def copy_records(
    writer: layout.StoreWriter, store: SequenceStore, first: int, last: int, source: int | None = None
) -> None:
    """Write records ``first`` to ``last`` (excluded) of a store; ``source`` replaces the number of theirs."""
    if first == last:
        return
    begin, end = int(store.offsets[first]), int(store.offsets[last])
    shift = writer.total - begin
    _letters(writer, store, begin, end)
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
    """Write a part of a record as a record of its own; its name."""
    begin = int(store.offsets[part.record])
    length = int(store.offsets[part.record + 1]) - begin
    name, description = store.name(part.record), store.description(part.record).encode()
    if (part.start, part.stop) != (0, length):
        name = f"{name}:{part.start + 1}-{part.stop}"
    _letters(writer, store, begin + part.start, begin + part.stop)
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


def _letters(writer: layout.StoreWriter, store: SequenceStore, begin: int, end: int) -> None:
    for at in range(begin, end, _AT_ONCE):
        stop = min(at + _AT_ONCE, end)
        masks = (intervals.clip(store.arrays[name], at, stop) for name in ("soft", "unknown"))
        writer.extend(store.arrays["residues"][at:stop], *masks)


def _stretches(chosen: Iterable[int | Range], store: SequenceStore) -> Iterator[tuple[int, int] | Range]:
    """Neighbours among the indices as (first, last excluded), since copying many at once is faster; ranges alone."""
    first = last = 0
    for one in chosen:
        if not isinstance(one, tuple) and not 0 <= one < len(store):
            raise IndexError(f"{store.folder} has {len(store)} records; there is no record {one}")
        if not isinstance(one, tuple) and first < last == one:
            last += 1
            continue
        if first < last:
            yield first, last
        first, last = (0, 0) if isinstance(one, tuple) else (int(one), int(one) + 1)
        if isinstance(one, tuple):
            if not len(store.residues(*one)):  # which raises where the store has no such part
                raise ValueError(f"{store.location(one[0])}: an empty range was chosen")
            yield Range(*one)
    if first < last:
        yield first, last


def contiguous(keep: np.ndarray) -> Sequence[tuple[int, int]]:
    """(first, last excluded) of the stretches of True."""
    return [(int(first), int(last)) for first, last in intervals.from_mask(keep)]
