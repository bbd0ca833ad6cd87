"""Sequences on the disk, mapped into memory: opened in milliseconds, read where asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.sequences import intervals, layout, name_index


def _names_store(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose errors name the store: tables damaged in place are noticed when a record is looked up."""

    @wraps(method)
    def call(self: SequenceStore, *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, *arguments, **named)
        except (IndexError, ValueError) as error:
            if str(self.folder) in str(error) or any(source in str(error) for source in self.sources):
                raise
            raise ValueError(f"{self.folder}: its tables are damaged ({error}); index the sequences again") from error

    return call


class SequenceStore:
    """The records of a store's folder (its files are described in ``layout``): ``SequenceStore.open("genomes")``.

    Memory: what is read is the system's page cache, shared by all processes; nothing is read on opening but the
    manifest. Pickled (to a loader's worker), a store is its folder's name. Positions count from 0, ``stop`` is
    excluded.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.arrays = arrays
        self.alphabet: str = manifest["alphabet"]
        """``protein`` or ``dna``"""
        self.offsets = arrays["offsets"]
        """int64 [records + 1], positions in ``arrays["residues"]``"""
        self.total = int(manifest["residues"])
        """Residues of all records."""

    @classmethod
    def open(cls, folder: str | Path) -> SequenceStore:
        """Open a store; ``ValueError`` names the file that is missing, of another size or shape, and what to do."""
        folder = Path(folder)
        manifest = layout.read_manifest(folder)
        arrays = {name: _map_bytes(folder / f"{name}.bin") for name in layout.BINARIES}
        for name, kind in layout.TABLES.items():
            arrays[name] = _map_table(folder / f"{name}.npy", kind)
        store = cls(folder, manifest, arrays)
        store._check()
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return SequenceStore.open, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [records]"""
        return np.diff(self.offsets)

    @property
    def sources(self) -> list[str]:
        """Paths of the files that were indexed."""
        return [source["path"] for source in self.manifest["sources"]]

    @_names_store
    def name(self, index: int) -> str:
        """First word of a record's header."""
        return self._text("names", "name_offsets", index)

    @_names_store
    def description(self, index: int) -> str:
        """What follows the name in a record's header."""
        return self._text("descriptions", "description_offsets", index)

    @_names_store
    def location(self, index: int) -> str:
        """``FILE: line N: record 'NAME'``: what an error about a record begins with."""
        index = self._index(index)
        source = self.sources[self.arrays["sources"][index]]
        return f"{source}: line {self.arrays['lines'][index]}: record {self.name(index)!r}"

    @_names_store
    def find(self, name: str) -> int:
        """Index of the record of this name, in O(log records); ``KeyError`` if there is none."""
        wanted = name.encode("utf-8", "surrogateescape")
        if wanted:
            table = self.arrays["name_hashes"]
            value = name_index.hash_names(np.frombuffer(wanted, np.uint8), np.array([0, len(wanted)]))[0]
            at = int(np.searchsorted(table, value))
            while at < len(table) and table[at] == value:
                index = int(self.arrays["name_records"][at])
                if self._bytes("names", "name_offsets", index) == wanted:
                    return index
                at += 1
        raise KeyError(f"{self.folder}: no record is called {name!r}")

    def residues(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 [stop - start], a view: capital ASCII letters of a record. ``ValueError`` beyond its ends."""
        first, last = self._span(index, start, stop)
        return self.arrays["residues"][first:last]

    @_names_store
    def soft_mask(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """bool [stop - start]: which residues are soft-masked (small letters in the file)."""
        return intervals.to_mask(self.arrays["soft"], *self._span(index, start, stop))

    @_names_store
    def unknown_mask(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """bool [stop - start]: which residues are N (DNA) or X (protein)."""
        return intervals.to_mask(self.arrays["unknown"], *self._span(index, start, stop))

    @_names_store
    def soft_intervals(self, index: int) -> np.ndarray:
        """int64 [runs, 2]: (start, stop) of a record's soft-masked stretches."""
        return intervals.clip(self.arrays["soft"], *self._span(index, 0, None))

    @_names_store
    def unknown_intervals(self, index: int) -> np.ndarray:
        """int64 [runs, 2]: (start, stop) of a record's stretches of N or X."""
        return intervals.clip(self.arrays["unknown"], *self._span(index, 0, None))

    def verify(self) -> None:
        """Read every file and compare its checksum with the manifest's; ``ValueError`` names the first that differs."""
        for name, described in self.manifest["files"].items():
            found = layout.fingerprint(self.folder / name)
            if found != described:
                raise ValueError(
                    f"{self.folder / name}: SHA-256 {found['sha256'][:12]}…, the manifest says"
                    f" {described['sha256'][:12]}…: damaged or changed; index the sequences again"
                )

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.folder} has {len(self)} records; there is no record {index}")
        return index % len(self)

    def _span(self, index: int, start: int, stop: int | None) -> tuple[int, int]:
        if not 0 <= index < len(self):
            index = self._index(index)
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        if not 0 <= first <= last <= self.total:
            raise ValueError(
                f"{self.folder / 'offsets.npy'}: record {index} is {first}:{last} of {self.total} residues: damaged;"
                " index the sequences again"
            )
        end = last - first if stop is None else stop
        if not 0 <= start <= end <= last - first:
            raise ValueError(f"{self.location(index)} has {last - first} residues; {start}:{end} is no part of it")
        return first + start, first + end

    def _bytes(self, blob: str, offsets: str, index: int) -> bytes:
        return self.arrays[blob][self.arrays[offsets][index] : self.arrays[offsets][index + 1]].tobytes()

    def _text(self, blob: str, offsets: str, index: int) -> str:
        return self._bytes(blob, offsets, self._index(index)).decode("utf-8", "replace")

    def _check(self) -> None:
        """Shapes and ends of the arrays, which cost no reading."""
        arrays, records = self.arrays, int(self.manifest["records"])
        ends = {"offsets": "residues", "name_offsets": "names", "description_offsets": "descriptions"}
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(layout.TABLES, (records,)),
            **dict.fromkeys(ends, (records + 1,)),
        }
        shapes |= {name: (len(arrays[name]), 2) for name in ("soft", "unknown")}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(
                    f"{self.folder / name}.npy: shape {arrays[name].shape}, expected {shape} of {records} records;"
                    " index the sequences again"
                )
        for name, blob in ends.items():
            if arrays[name][0] != 0 or arrays[name][-1] != len(arrays[blob]):
                raise ValueError(
                    f"{self.folder / name}.npy: goes from {arrays[name][0]} to {arrays[name][-1]}, but {blob}.bin has"
                    f" {len(arrays[blob])} bytes; index the sequences again"
                )


def _map_bytes(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _map_table(path: Path, kind: type[np.generic]) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, so that a damaged one raises whatever it leads to
        raise ValueError(f"{path}: not a .npy array ({error}); index the sequences again") from error
    if table.dtype != kind:
        raise ValueError(f"{path}: {table.dtype}, expected {np.dtype(kind)}; index the sequences again")
    return np.asarray(table)
