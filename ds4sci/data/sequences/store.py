"""Memory-mapped store of sequences: opens in milliseconds and reads only the requested residues."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.sequences import intervals, layout, name_index
from ds4sci.files.atomic_files import fingerprint


def _names_store(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that adds the store to the errors of a method: damaged tables show up when a record is looked up."""

    @wraps(method)
    def call(self: SequenceStore, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (IndexError, ValueError) as error:
            if str(self.folder) in str(error) or any(source in str(error) for source in self.sources):
                raise
            raise ValueError(f"{self.folder}: the tables are damaged ({error}); index the sequences again") from error

    return call


class SequenceStore:
    """The records of a store: ``SequenceStore.open("genomes")``. ``layout`` describes the files.

    Opening reads only the manifest. Residues are read through the page cache, which all processes share. A pickled
    store is the name of its folder. Positions are 0-based, and ``stop`` is exclusive.
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
        """Open a store. ``ValueError`` names a file that is missing or has the wrong size or shape."""
        folder = Path(folder)
        manifest = layout.read_manifest(folder)
        arrays = {name: _map_bytes(folder / f"{name}.bin") for name in layout.BINARIES}
        for name, dtype in layout.TABLES.items():
            arrays[name] = _map_table(folder / f"{name}.npy", dtype)
        store = cls(folder, manifest, arrays)
        store._check_arrays()
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
        """Rest of a record's header, after the name."""
        return self._text("descriptions", "description_offsets", index)

    @_names_store
    def location(self, index: int) -> str:
        """``FILE: line N: record 'NAME'``, the beginning of an error message about a record."""
        index = self._index(index)
        source = self.sources[self.arrays["sources"][index]]
        return f"{source}: line {self.arrays['lines'][index]}: record {self.name(index)!r}"

    @_names_store
    def find(self, name: str) -> int:
        """Index of the record with this name, in O(log records); ``KeyError`` if there is none."""
        wanted = name.encode("utf-8", "surrogateescape")
        if wanted:
            hashes = self.arrays["name_hashes"]
            value = name_index.hash_names(np.frombuffer(wanted, np.uint8), np.array([0, len(wanted)]))[0]
            at = int(np.searchsorted(hashes, value))
            while at < len(hashes) and hashes[at] == value:
                index = int(self.arrays["name_records"][at])
                if self._bytes("names", "name_offsets", index) == wanted:
                    return index
                at += 1
        raise KeyError(f"{self.folder}: no record named {name!r}")

    def residues(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 [stop - start], a view: upper-case ASCII letters of a record. ``ValueError`` beyond its ends."""
        first, last = self._span(index, start, stop)
        return self.arrays["residues"][first:last]

    @_names_store
    def soft_mask(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """bool [stop - start]: which residues are soft-masked (lower case in the file)."""
        return intervals.to_mask(self.arrays["soft"], *self._span(index, start, stop))

    @_names_store
    def unknown_mask(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """bool [stop - start]: which residues are N (DNA) or X (protein)."""
        return intervals.to_mask(self.arrays["unknown"], *self._span(index, start, stop))

    @_names_store
    def soft_intervals(self, index: int) -> np.ndarray:
        """int64 [m, 2]: (start, stop) of the soft-masked intervals of a record."""
        return intervals.clip(self.arrays["soft"], *self._span(index, 0, None))

    @_names_store
    def unknown_intervals(self, index: int) -> np.ndarray:
        """int64 [m, 2]: (start, stop) of the intervals of N or X in a record."""
        return intervals.clip(self.arrays["unknown"], *self._span(index, 0, None))

    def verify(self) -> None:
        """Compare the checksum of every file with the manifest; ``ValueError`` names the first that differs."""
        for name, expected in self.manifest["files"].items():
            found = fingerprint(self.folder / name)
            if found != expected:
                raise ValueError(
                    f"{self.folder / name}: SHA-256 {found['sha256'][:12]}…, expected {expected['sha256'][:12]}…:"
                    " the file is damaged or was changed; index the sequences again"
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
                f"{self.folder / 'offsets.npy'}: record {index} is {first}:{last} of {self.total} residues: the file is"
                " damaged; index the sequences again"
            )
        end = last - first if stop is None else stop
        if not 0 <= start <= end <= last - first:
            raise ValueError(f"{self.location(index)} has {last - first} residues; {start}:{end} is out of range")
        return first + start, first + end

    def _bytes(self, blob: str, offsets: str, index: int) -> bytes:
        return self.arrays[blob][self.arrays[offsets][index] : self.arrays[offsets][index + 1]].tobytes()

    def _text(self, blob: str, offsets: str, index: int) -> str:
        return self._bytes(blob, offsets, self._index(index)).decode("utf-8", "replace")

    def _check_arrays(self) -> None:
        """Check the shapes of the arrays, and their first and last entries."""
        arrays, records = self.arrays, int(self.manifest["records"])
        blobs = {"offsets": "residues", "name_offsets": "names", "description_offsets": "descriptions"}
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(layout.TABLES, (records,)),
            **dict.fromkeys(blobs, (records + 1,)),
        }
        shapes |= {name: (len(arrays[name]), 2) for name in ("soft", "unknown")}
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(
                    f"{self.folder / name}.npy: shape {arrays[name].shape}, expected {shape} for {records} records;"
                    " index the sequences again"
                )
        for name, blob in blobs.items():
            if arrays[name][0] != 0 or arrays[name][-1] != len(arrays[blob]):
                raise ValueError(
                    f"{self.folder / name}.npy: ranges from {arrays[name][0]} to {arrays[name][-1]}, but {blob}.bin has"
                    f" {len(arrays[blob])} bytes; index the sequences again"
                )


def _map_bytes(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _map_table(path: Path, dtype: type[np.generic]) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy evaluates the header, so a damaged one may raise anything
        raise ValueError(f"{path}: not a .npy array ({error}); index the sequences again") from error
    if table.dtype != dtype:
        raise ValueError(f"{path}: dtype {table.dtype}, expected {np.dtype(dtype)}; index the sequences again")
    return np.asarray(table)
