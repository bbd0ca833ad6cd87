"""On-disk layout of a sequence store: its files, its manifest, and their writer.

A store is a folder (n residues, r records):

====================  ===================  ===========================================================================
``residues.bin``      uint8 [n]            upper-case ASCII letters, all records concatenated
``offsets.npy``       int64 [r + 1]        residues of record i are ``offsets[i]:offsets[i + 1]``
``names.bin``         uint8                names, UTF-8, concatenated; ``name_offsets.npy`` int64 [r + 1]
``descriptions.bin``  uint8                the rest of the headers; ``description_offsets.npy`` int64 [r + 1]
``name_hashes.npy``   uint64 [r]           hashes of the names, ascending; ``name_records.npy`` int64 [r]
``soft.npy``          int64 [m, 2]         intervals of lower case (soft mask), as positions in ``residues.bin``
``unknown.npy``       int64 [m, 2]         intervals of N (DNA) or X (protein)
``sources.npy``       int32 [r]            index of each record's file in the manifest's ``sources``
``lines.npy``         int64 [r]            line of its header in that file, from 1
``manifest.json``                          format, alphabet, sources, and size and SHA-256 of every file
====================  ===================  ===========================================================================

The bytes depend only on the sequences, not on the compression of the files or the number of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.sequences import intervals, name_index
from ds4sci.data.sequences.alphabet import ALPHABETS
from ds4sci.files.atomic_files import fingerprint, replace_text

FORMAT = 1
KIND = "ds4sci sequence store"
MANIFEST = "manifest.json"
BINARIES = ("residues", "names", "descriptions")
TABLES: dict[str, type[np.generic]] = {
    "offsets": np.int64, "name_offsets": np.int64, "description_offsets": np.int64, "name_hashes": np.uint64,
    "name_records": np.int64, "soft": np.int64, "unknown": np.int64, "sources": np.int32, "lines": np.int64,
}  # fmt: skip


class StoreWriter:
    """Writer of a store into a new folder: letters first, then record ends. Memory: 40 bytes per record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in BINARIES}
        self.total = 0
        """Letters written so far."""
        self.records = 0
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("ends", "names", "descriptions", "sources", "lines")
        }
        self._intervals: dict[str, list[np.ndarray]] = {"soft": [], "unknown": []}

    def extend(self, letters: np.ndarray, soft: np.ndarray, unknown: np.ndarray) -> None:
        """Append letters (uint8, upper case) and their intervals, as positions in ``letters``."""
        self._files["residues"].write(letters.data)
        for name, new_intervals in (("soft", soft), ("unknown", unknown)):
            if len(new_intervals):
                self._intervals[name].append(new_intervals + self.total)
        self.total += len(letters)

    def close_records(
        self,
        ends: np.ndarray,
        name_blob: bytes,
        name_lengths: np.ndarray,
        description_blob: bytes,
        description_lengths: np.ndarray,
        sources: np.ndarray,
        lines: np.ndarray,
    ) -> None:
        """End the next records at ``ends`` (int64, positions in all letters); the other arguments are their columns."""
        self._files["names"].write(name_blob)
        self._files["descriptions"].write(description_blob)
        columns = (ends, name_lengths, description_lengths, sources, lines)
        for column, values in zip(self._columns.values(), columns, strict=True):
            column.append(values)
        self.records += len(ends)

    def truncate(self, total: int) -> None:
        """Drop all letters after the first ``total``; they belong to no record yet."""
        self._files["residues"].seek(total)
        self._files["residues"].truncate()
        self.total = total
        for arrays in self._intervals.values():
            while arrays and arrays[-1][0, 0] >= total:
                arrays.pop()
            if arrays:
                arrays[-1] = intervals.truncate(arrays[-1], total)

    def discard(self) -> None:
        """Delete everything written so far."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder)

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the other files, and the manifest last; it has the entries of ``manifest`` and those known here."""
        for file in self._files.values():
            file.close()
        column = {
            name: np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
            for name, parts in self._columns.items()
        }
        blob = np.fromfile(self.folder / "names.bin", np.uint8)
        tables = {
            "offsets": np.concatenate([[0], column["ends"]]),
            "name_offsets": np.concatenate([[0], np.cumsum(column["names"])]),
            "description_offsets": np.concatenate([[0], np.cumsum(column["descriptions"])]),
            "soft": intervals.merge(self._intervals["soft"]),
            "unknown": intervals.merge(self._intervals["unknown"]),
            "sources": column["sources"],
            "lines": column["lines"],
        }
        hashes = name_index.hash_names(blob, tables["name_offsets"])
        tables["name_records"] = np.argsort(hashes, kind="stable")
        tables["name_hashes"] = hashes[tables["name_records"]]
        for name, dtype in TABLES.items():
            np.save(self.folder / f"{name}.npy", tables[name].astype(dtype, copy=False), allow_pickle=False)
        full_manifest = {
            "kind": KIND,
            "format": FORMAT,
            **manifest,
            "records": self.records,
            "residues": self.total,
            "files": {path.name: fingerprint(path) for path in sorted(self.folder.iterdir())},
        }
        write_manifest(self.folder, full_manifest)
        return full_manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a store's manifest atomically."""
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", sync=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a store's manifest, and the sizes of its files.

    ``ValueError`` if there is no such folder or no store in it, this version does not read its format, or a file is
    missing or has another size.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "create one with `ds4sci data index FASTA… OUT_DIR`"
        raise ValueError(f"{folder}: not a sequence store (it has no {MANIFEST}); {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a manifest ({error}); index the sequences again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"{path}: not the manifest of a sequence store; index the sequences again")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {manifest.get('format')!r}; this version reads format {FORMAT}: index the sequences again"
        )
    expected = {f"{name}.bin" for name in BINARIES} | {f"{name}.npy" for name in TABLES}
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != expected:
        raise ValueError(f"{path}: expected the files {', '.join(sorted(expected))}; index the sequences again")
    invalid = _first_invalid_entry(manifest)
    if invalid:
        raise ValueError(f"{path}: {invalid} is missing or has the wrong type; index the sequences again")
    for name, described in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != described.get("size"):
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise ValueError(
                f"{folder / name}: {found}, expected {described.get('size'):,} bytes; index the sequences again"
            )
    return manifest


def _first_invalid_entry(manifest: dict[str, Any]) -> str | None:
    """The first entry of a manifest that is missing or has the wrong type."""
    types = {"records": int, "residues": int, "rules": dict, "sources": list, "skipped": dict, "replaced": dict,
             "rare": dict}  # fmt: skip
    for key, expected in types.items():
        if not _has_type(manifest.get(key), expected):
            return key
    if manifest.get("alphabet") not in list(ALPHABETS):
        return "alphabet"
    entries = [*((f"files.{name}", entry) for name, entry in manifest["files"].items())]
    entries += [(f"sources[{index}]", entry) for index, entry in enumerate(manifest["sources"])]
    for where, entry in entries:
        types = {"size": int, "sha256": str, **({"path": str} if where.startswith("sources") else {})}
        for key, expected in types.items():
            if not isinstance(entry, dict) or not _has_type(entry.get(key), expected):
                return f"{where}.{key}"
    return None


def _has_type(value: Any, expected: type) -> bool:
    """Whether a value from JSON has this type; integers must be ≥ 0."""
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, expected)
