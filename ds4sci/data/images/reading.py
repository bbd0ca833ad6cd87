"""Reader of an image in any of the formats, chosen by the name of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ds4sci.data.images import dicom, nifti, npz, png, tiff
from ds4sci.data.images.image import Image, checked

READERS: dict[str, Callable[[Path, bool], Image]] = {
    ".tif": tiff.read,
    ".tiff": tiff.read,
    ".png": png.read,
    ".nii": nifti.read,
    ".nii.gz": nifti.read,
    ".dcm": dicom.read,
    ".npz": npz.read,
}
"""Suffix → function (path, labels) → image."""


def suffix_of(path: Path) -> str | None:
    """Return the suffix of ``READERS`` that the name of ``path`` ends in, or None."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(READERS, key=len, reverse=True) if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """Return the name of ``path`` without the suffix of its format."""
    return path.name[: len(path.name) - len(suffix_of(path) or "")]


def read_image(path: Path, *, labels: bool = False) -> Image:
    """Read ``path``: a file of a format of ``READERS``, or a folder with the slices of one DICOM series.

    labels  the values are class numbers: they must be integers, and are neither scaled nor inverted

    Raises ValueError, naming the file and the reason, for everything that cannot be read exactly.
    """
    if path.is_dir():
        return checked(path, dicom.read_series(path, labels), labels=labels)
    suffix = suffix_of(path)
    if suffix is None:
        raise ValueError(f"{path}: no image format of that name; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        image = READERS[suffix](path, labels)
    except ValueError as error:
        raise error if str(path) in str(error) else _unreadable(path, error) from None
    except Exception as error:  # damaged files make the libraries raise errors of every kind
        raise _unreadable(path, error) from error
    return checked(path, image, labels=labels)


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path}: cannot be read: {reason}")
