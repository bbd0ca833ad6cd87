"""Reader of DICOM files, with pydicom: radiographs, multi-frame images, and series of slices that form a volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.images.image import Image, load_module

MAX_SPREAD = 1e-2
"""Largest deviation of the distance of two slices from the median, as a fraction: more is a missing slice."""


def read(path: Path, labels: bool) -> Image:
    """Read one file. See ``ds4sci.data.images.reading.read_image``.

    Grey values are those of the modality (rescale slope and intercept, or its look-up table), and of MONOCHROME1
    images inverted within the range of the stored bits, so that large values are bright. Frames are slices (z).
    """
    dataset = _open(path)
    values = _values(path, dataset, labels)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    spacing: Any = _in_plane(path, dataset)
    if frames > 1:
        between = dataset.get("SpacingBetweenSlices")
        known = spacing is not None and between is not None
        if values.ndim != 3:
            raise ValueError(f"{path}: {frames} frames of colours; expected grey values")
        return Image(values[None], (float(between), *spacing) if known else None, _patient(dataset))
    return Image(np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None], spacing, _patient(dataset))


def series_key(path: Path) -> str | None:
    """Return the UID of the series of which ``path`` is a slice with a position, or None for an image by itself.

    Raises ValueError if the file is no DICOM file.
    """
    pydicom = load_module("pydicom", path)
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    is_slice = "ImagePositionPatient" in dataset and "ImageOrientationPatient" in dataset
    return str(dataset.get("SeriesInstanceUID", "")) or None if is_slice else None


def read_series(folder: Path, labels: bool) -> Image:
    """Read the files of ``folder``, the slices of one series, as a volume with RAS+ axes.

    Slices are ordered by their position along the normal of the slices. Raises ValueError, naming a file, for several
    series or patients, slices of different shape, orientation or spacing, two slices at one place, and missing slices.
    """
    nibabel = load_module("nibabel", folder)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(".dcm"))
    if len(paths) < 2:
        raise ValueError(f"{folder}: {len(paths)} DICOM files; expected the slices of a series (*.dcm)")
    slices = {path: _open(path) for path in paths}
    first = slices[paths[0]]
    for path, one in slices.items():
        for key in ("SeriesInstanceUID", "PatientID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"):
            if one.get(key) != first.get(key):
                raise ValueError(f"{path}: {key} is {one.get(key)}; {paths[0].name} has {first.get(key)}")
    for path, one in slices.items():
        if "ImagePositionPatient" not in one or "ImageOrientationPatient" not in one:
            raise ValueError(f"{path}: no ImagePositionPatient and ImageOrientationPatient; expected those of a slice")
    plane = _in_plane(paths[0], first)
    if plane is None:
        raise ValueError(f"{paths[0]}: no PixelSpacing; expected that of a slice")
    along_row, along_column = (np.array(first.ImageOrientationPatient, float)[i : i + 3] for i in (0, 3))
    normal = np.cross(along_row, along_column)
    place = {path: float(np.dot(normal, np.array(one.ImagePositionPatient, float))) for path, one in slices.items()}
    ordered = sorted(paths, key=lambda path: place[path])
    step = _step(ordered, place)
    values = np.stack([_values(path, slices[path], labels) for path in ordered])
    if values.ndim != 3:
        raise ValueError(f"{folder}: slices of colours; expected grey values")
    # array axes (slice, row, column); DICOM's coordinates are LPS
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = normal * step, along_column * plane[0], along_row * plane[1]
    affine[:3, 3] = np.array(slices[ordered[0]].ImagePositionPatient, float)
    affine[:2] *= -1
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine, dtype=values.dtype))
    spacing = tuple(float(x) for x in reversed(nibabel.affines.voxel_sizes(image.affine)))
    canonical = np.asarray(image.dataobj).transpose(2, 1, 0)
    return Image(np.ascontiguousarray(canonical)[None], spacing, _patient(first), np.array(image.affine))


def _step(ordered: list[Path], place: dict[Path, float]) -> float:
    """Return the distance of the slices in mm. Raises ValueError if it varies."""
    steps = np.diff([place[path] for path in ordered])
    step = float(np.median(steps))
    for number, one in enumerate(steps):
        if one <= 1e-6:
            raise ValueError(f"{ordered[number + 1]}: at the place of {ordered[number].name}; expected one slice each")
        if abs(one - step) > MAX_SPREAD * step:
            raise ValueError(
                f"{ordered[number + 1]}: {one:.3f} mm from {ordered[number].name}, where slices are {step:.3f} mm "
                "apart; a slice is missing"
            )
    return step


def _open(path: Path) -> Any:
    pydicom = load_module("pydicom", path)
    try:
        return pydicom.dcmread(path)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _values(path: Path, dataset: Any, labels: bool) -> np.ndarray:
    """Return the values of the modality, [y, x], [frames, y, x] or [y, x, c]: float32 if they are scaled."""
    pixels = load_module("pydicom.pixels", path)
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if kind not in ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422"):
        raise ValueError(f"{path}: PhotometricInterpretation {kind!r}; expected MONOCHROME1, MONOCHROME2 or RGB")
    try:
        stored = dataset.pixel_array  # colours are RGB
    except Exception as error:
        raise ValueError(f"{path}: its pixels cannot be read: {' '.join(str(error).split())}") from error
    if labels or not kind.startswith("MONOCHROME"):
        return stored
    if kind == "MONOCHROME1":
        bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
        ends = -1 if signed else (1 << bits) - 1  # sum of the least and the greatest stored value
        stored = (ends - stored.astype(np.int64)).astype(stored.dtype)
    scaled = pixels.apply_modality_lut(stored, dataset)
    return stored if scaled is stored else np.asarray(scaled, np.float32)


def _in_plane(path: Path, dataset: Any) -> tuple[float, float] | None:
    """Return the distance of rows and of columns in mm: in the patient, else at the detector; None if unknown."""
    given = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if given is None:
        return None
    if len(given) != 2:
        raise ValueError(f"{path}: PixelSpacing {list(given)}; expected two numbers")
    return float(given[0]), float(given[1])


def _patient(dataset: Any) -> str | None:
    return str(dataset.get("PatientID") or "") or None
