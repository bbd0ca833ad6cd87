"""A sequence store on the disk: its files, what describes them, and the one writer of them.

A store is a folder (n residues, r records):

====================  ===================  ===========================================================================
``residues.bin``      uint8 [n]            capital ASCII letters, all records end to end
``offsets.npy``       int64 [r + 1]        those of record i are ``offsets[i]:offsets[i + 1]``
``names.bin``         uint8                names, UTF-8, end to end; ``name_offsets.npy`` int64 [r + 1]
``descriptions.bin``  uint8                the rest of the headers; ``description_offsets.npy`` int64 [r + 1]
``name_hashes.npy``   uint64 [r]           hashes of the names, rising; ``name_records.npy`` int64 [r] whose they are
``soft.npy``          int64 [runs, 2]      stretches of small letters (soft mask), as positions in ``residues.bin``
``unknown.npy``       int64 [runs, 2]      stretches of N (DNA) or X (protein)
``sources.npy``       int32 [r]            which of the manifest's sources a record is from
``lines.npy``         int64 [r]            line of its header there, from 1
``manifest.json``                          format, alphabet, sources and every file's size and SHA-256
====================  ===================  ===========================================================================

The bytes depend on the sequences alone: not on how the files were packed, nor on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.sequences import intervals, name_index
from ds4sci.data.sequences.alphabet import ALPHABETS

FORMAT = 1
KIND = "ds4sci sequence store"
MANIFEST = "manifest.json"
BINARIES = ("residues", "names", "descriptions")
TABLES: dict[str, type[np.generic]] = {
    "offsets": np.int64, "name_offsets": np.int64, "description_offsets": np.int64, "name_hashes": np.uint64,
    "name_records": np.int64, "soft": np.int64, "unknown": np.int64, "sources": np.int32, "lines": np.int64,
}  # fmt: skip


class StoreWriter:
    """Writes a store into a new folder: letters as they come, records as they end. Memory: 40 bytes a record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in BINARIES}
        self.total = 0
        """Letters so far."""
        self.records = 0
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("ends", "names", "descriptions", "sources", "lines")
        }
        self._runs: dict[str, list[np.ndarray]] = {"soft": [], "unknown": []}

    def extend(self, letters: np.ndarray, soft: np.ndarray, unknown: np.ndarray) -> None:
        """More letters, uint8 capitals, and the runs among them, as positions in ``letters``."""
        self._files["residues"].write(letters.data)
        for name, found in (("soft", soft), ("unknown", unknown)):
            if len(found):
                self._runs[name].append(found + self.total)
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
        """The next records end at ``ends`` (int64, positions in all letters); the rest are their columns."""
        self._files["names"].write(name_blob)
        self._files["descriptions"].write(description_blob)
        columns = (ends, name_lengths, description_lengths, sources, lines)
        for column, values in zip(self._columns.values(), columns, strict=True):
            column.append(values)
        self.records += len(ends)

    def cut(self, total: int) -> None:
        """Forget the letters behind the first ``total``, which no record holds yet."""
        self._files["residues"].seek(total)
        self._files["residues"].truncate()
        self.total = total
        for name, stretches in self._runs.items():
            while stretches and stretches[-1][0, 0] >= total:
                stretches.pop()
            if stretches:
                stretches[-1] = intervals.truncate(stretches[-1], total)
            self._runs[name] = stretches

    def abandon(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder)

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rest of the files, the manifest last; it gets ``manifest``'s entries and what is known here."""
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
            "soft": intervals.merge(self._runs["soft"]),
            "unknown": intervals.merge(self._runs["unknown"]),
            "sources": column["sources"],
            "lines": column["lines"],
        }
        found = name_index.hash_names(blob, tables["name_offsets"])
        tables["name_records"] = np.argsort(found, kind="stable")
        tables["name_hashes"] = found[tables["name_records"]]
        for name, kind in TABLES.items():
            np.save(self.folder / f"{name}.npy", tables[name].astype(kind, copy=False), allow_pickle=False)
        whole = {
            "kind": KIND,
            "format": FORMAT,
            **manifest,
            "records": self.records,
            "residues": self.total,
            "files": {path.name: fingerprint(path) for path in sorted(self.folder.iterdir())},
        }
        write_manifest(self.folder, whole)
        return whole


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a store's manifest; it holds the old one or the new, never a part."""
    aside = folder / f".{MANIFEST}"
    aside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A store's manifest, its files looked at for their sizes only.

    ``ValueError``: no such folder, no store, a format that this version does not read, a file missing or of another
    size.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "make one with `ds4sci data index FASTA… OUT_DIR`"
        raise ValueError(f"{folder}: no sequence store (it has no {MANIFEST}); {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a manifest ({error}); index the sequences again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(f"{path}: no manifest of a sequence store; index the sequences again")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {manifest.get('format')!r}; this version reads format {FORMAT}: index the sequences again"
        )
    expected = {f"{name}.bin" for name in BINARIES} | {f"{name}.npy" for name in TABLES}
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != expected:
        raise ValueError(f"{path}: its files should be {', '.join(sorted(expected))}; index the sequences again")
    strange = _strange(manifest)
    if strange:
        raise ValueError(f"{path}: {strange} is missing or of another kind; index the sequences again")
    for name, described in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != described.get("size"):
            has = "is missing" if size is None else f"has {size:,} bytes"
            raise ValueError(
                f"{folder / name}: {has}, the manifest says {described.get('size'):,}; index the sequences again"
            )
    return manifest


def _strange(manifest: dict[str, Any]) -> str | None:
    """The first entry of a manifest that is not there or not of its kind."""
    kinds = {"records": int, "residues": int, "rules": dict, "sources": list, "skipped": dict, "replaced": dict,
             "rare": dict}  # fmt: skip
    for key, kind in kinds.items():
        if not _is(manifest.get(key), kind):
            return key
    if manifest.get("alphabet") not in list(ALPHABETS):
        return "alphabet"
    described = [*((f"files.{name}", told) for name, told in manifest["files"].items())]
    described += [(f"sources[{at}]", told) for at, told in enumerate(manifest["sources"])]
    for where, told in described:
        wanted = {"size": int, "sha256": str, **({"path": str} if where.startswith("sources") else {})}
        for key, kind in wanted.items():
            if not isinstance(told, dict) or not _is(told.get(key), kind):
                return f"{where}.{key}"
    return None


def _is(value: Any, kind: type) -> bool:
    """Whether a value from JSON is of this kind; numbers count from 0."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, kind)
