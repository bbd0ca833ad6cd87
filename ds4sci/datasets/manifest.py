"""Manifest of a dataset's folder: name, version, and size and SHA-256 of each file. It is written last.

A folder without a manifest is not a dataset, however many files it has.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4sci.datasets.archives import safe_name
from ds4sci.datasets.dataset import MANIFEST
from ds4sci.files import atomic_files


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Name and version of a dataset, and its files by their path in the folder."""

    name: str
    version: str
    files: Mapping[str, FileSum]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        files = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(self.files.items())}
        return {"name": self.name, "version": self.version, "files": files}


def write(folder: Path, name: str, version: str) -> Manifest:
    """Compute the sums of every file in ``folder``, sync the files, write the manifest and return it.

    Raises ValueError if there are no files, and for a link, whose target could change.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ValueError(f"{path}: is a link; a dataset holds regular files")
        if path.is_file() and relative != MANIFEST:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            files[relative] = FileSum(**atomic_files.fingerprint(path))
    if not files:
        raise ValueError(f"{folder}: no files; expected the files of the dataset {name}")
    manifest = Manifest(name, version, files)
    write_json(folder, manifest)
    return manifest


def write_json(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` of ``folder`` atomically."""
    atomic_files.replace_text(folder / MANIFEST, json.dumps(manifest.to_json(), indent=1) + "\n")


def read(folder: Path) -> Manifest:
    """The manifest of ``folder``. Raises ValueError if there is none or it is malformed."""
    file = folder / MANIFEST
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        files = {safe_name(name): FileSum(int(one["size"]), str(one["sha256"])) for name, one in tree["files"].items()}
        manifest = Manifest(str(tree["name"]), str(tree["version"]), files)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: not a dataset (it has no {MANIFEST}, which is written last; for files of your own it is "
            f"written by: ds4sci data manifest {folder})"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: unreadable: {type(error).__name__}: {error}") from None
    if not files or not all(re.fullmatch("[0-9a-f]{64}", one.sha256) for one in files.values()):
        raise ValueError(f"{file}: malformed: expected files, each with a SHA-256")
    return manifest


def faults(folder: Path, files: Mapping[str, FileSum], *, sums: bool = True) -> list[str]:
    """Describe each file of ``folder`` that is missing or differs from ``files``; empty if all are intact.

    sums  whether to read every file and compare its SHA-256; otherwise only sizes are compared
    """
    found = [fault(folder / name, expected, sums=sums) for name, expected in files.items()]
    return [text for text in found if text]


def fault(path: Path, expected: FileSum, *, sums: bool = True) -> str:
    """Describe how the file ``path`` differs from ``expected``; empty if it does not. A size of −1 is not compared."""
    try:
        size = path.stat().st_size
        if size != expected.size >= 0:
            return f"{path}: {size:,} bytes, expected {expected.size:,}"
        sha256 = atomic_files.fingerprint(path)["sha256"] if sums else expected.sha256
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return "" if sha256 == expected.sha256 else f"{path}: sha256 {sha256}, expected {expected.sha256}"
