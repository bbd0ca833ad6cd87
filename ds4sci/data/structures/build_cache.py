"""Cache of parsed structure files: one ``.npz`` per file with its chains and report rows, in OUT.work/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.structures.chain_file import pack_all_arrays, write_arrays
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.data.text_files import FileSection
from ds4sci.types import Record

CACHE_VERSION = 8
"""Part of the key. Increase it when the content stored for the same file changes."""


def entry_key(path: Path, src_dir: Path, settings: BuildSettings, templates: TemplateFolder | None = None) -> str:
    """Return the key of a structure file: a hash of its relative path, size, modification time and the settings."""
    stat = path.stat()
    parts = [CACHE_VERSION, str(path.relative_to(src_dir)), stat.st_size, stat.st_mtime_ns, settings.model_dump_json()]
    parts += [] if templates is None else [templates.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def file_stamps(paths: Sequence[Path | FileSection]) -> list[list[Any]]:
    """Return path, size and modification time of each file of a chain."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def is_current(entry: Path, files: Callable[[str], Sequence[Path | FileSection]]) -> bool:
    """Return whether a cache entry is intact and the files of its chains have not changed. Delete a damaged entry.

    files  chain key → its alignments and template hits
    """
    if not entry.exists():
        return False
    try:
        report, _ = load_entry(entry)
    except ValueError:
        entry.unlink()
        return False
    failed = any(row["kind"] == "parser error" for row in report["rows"])  # may succeed with more memory
    return not failed and all(file_stamps(files(key)) == stamps for key, stamps in report["alignments"].items())


def load_entry(entry: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the report (``rows``, ``alignments``) and the arrays of an entry; ``ValueError`` if it is damaged."""
    try:
        with np.load(entry, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return json.loads(arrays.pop("report").tobytes()), arrays
    except Exception as error:  # a damaged zip file can raise any exception
        raise ValueError(f"{entry}: damaged cache entry ({type(error).__name__}: {error})") from error


def store_entry(entry: Path, records: list[Record], rows: list[dict[str, Any]], alignments: dict[str, Any]) -> None:
    """Write an entry. ``alignments`` maps each chain key to ``file_stamps`` of its files."""
    report = json.dumps({"rows": rows, "alignments": alignments}).encode()
    write_arrays(entry, {"report": np.frombuffer(report, np.uint8), **(pack_all_arrays(records) if records else {})})
