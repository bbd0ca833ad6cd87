"""Debian package ``ferret-datasets``: fields on grids of the Earth, from which several datasets are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from ds4sci.datasets.archives import extract
from ds4sci.datasets.dataset import Source

PACKAGE = Source(
    kind="deb", package="ferret-datasets", version="7.6.0-5", size=27_795_908,
    sha256="e5770222647ebfe2ab77b845e07a7e05cb6fed7b12dec9ae287a1f8046031744",
)  # fmt: skip
LICENCE = "Ferret Licence (NOAA, public domain, redistribution allowed)"
"""Of the program and of the files that NOAA PMEL prepared; a field may have an owner of its own."""
_FOLDER = "usr/share/ferret-vis/data/"
"""Folder of the fields in the package."""
Fields = TypeVar("Fields")


def from_package(sources: Mapping[str, Path], name: str, read: Callable[[Path], Fields]) -> Fields:
    """Return what ``read`` makes of the file ``name`` of the package.

    Raises ValueError if the archive is not as expected.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (file,) = extract(sources[PACKAGE.package], Path(scratch), [_FOLDER + name])
        return read(file)
