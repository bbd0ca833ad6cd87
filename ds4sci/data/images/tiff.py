"""Reader of TIFF files, with tifffile: pages as z, channels, 8 to 32 bits, and the spacing of ImageJ and OME.

A page without a name for its axis is a slice (z). The resolution of a TIFF file is used where its unit is one of
microscopy or the centimetre; dots per inch are those of a printer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ds4sci.data.images.image import Image, load_module
from ds4sci.data.images.npz import to_channels_first

_MM = {"µm": 1e-3, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6, "mm": 1.0, "cm": 10.0, "m": 1e3}
"""Millimetres per unit."""
_PAGES, _SAMPLES = "QIZ", "SC"
"""Axes of tifffile that are slices and channels."""
_LOSS = re.compile(r"missing|zeroed|failed to read|could not read|out of range|expected \d+|incomplete", re.IGNORECASE)
"""Warnings of tifffile that mean that values are lost; others are about metadata."""


def read(path: Path, labels: bool) -> Image:
    """See ``ds4sci.data.images.reading.read_image``."""
    tifffile = load_module("tifffile", path)
    with _refused_losses(path), tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            shapes = ", ".join(str(list(one.shape)) for one in file.series)
            raise ValueError(f"{path}: {len(file.series)} images of different shapes: {shapes}; expected one image")
        series, page = file.series[0], file.pages[0]
        photometric = page.photometric.name
        if photometric not in ("MINISBLACK", "MINISWHITE", "RGB") and not (photometric == "PALETTE" and labels):
            raise ValueError(f"{path}: colours of the kind {photometric}; expected grey values or RGB")
        if page.extrasamples and photometric == "RGB":
            raise ValueError(f"{path}: an alpha channel beside RGB; remove it")
        axes, shape = _squeezed(path, series)
        values = series.asarray().reshape(shape)
        if photometric == "MINISWHITE" and not labels:
            values = _inverted(path, values, page.bitspersample)
        spacing = _spacing(file, page, "ZYX" if "Z" in axes else "YX")
    return Image(to_channels_first(values, axes), spacing)


@contextmanager
def _refused_losses(path: Path) -> Iterator[None]:
    """Raise ValueError if tifffile finds a file incomplete: it logs this, and returns the other pages, or zeros."""
    found: list[str] = []

    class Losses(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if record.levelno >= logging.ERROR or _LOSS.search(message):
                found.append(message)

    logger, handler = logging.getLogger("tifffile"), Losses(logging.WARNING)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # also where a program has silenced tifffile
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if found:
        raise ValueError(
            f"{path}: the file is damaged, truncated, or one of a set whose other files are absent: {found[0]}"
        )


def _squeezed(path: Path, series: Any) -> tuple[str, list[int]]:
    """Return the axes of a series as letters of CZYX and their lengths, without axes of length 1 beside Y and X.

    Raises ValueError for times, several kinds of slices, and axes of another kind.
    """
    kept = [(axis, n) for axis, n in zip(series.axes, series.shape, strict=True) if n > 1 or axis in "YX"]
    names = "".join("Z" if axis in _PAGES else "C" if axis in _SAMPLES else axis for axis, _ in kept)
    if sorted(names) not in (sorted("YX"), sorted("ZYX"), sorted("CYX"), sorted("CZYX")):
        raise ValueError(
            f"{path}: axes {series.axes} of shape {list(series.shape)}; expected rows and columns with at most one "
            "axis of slices and one of channels (split a time series into files)"
        )
    return names, [n for _, n in kept]


def _inverted(path: Path, values: np.ndarray, bits: int) -> np.ndarray:
    """Return grey values whose 0 is white with 0 as black."""
    if values.dtype.kind != "u":
        raise ValueError(f"{path}: MINISWHITE with values of type {values.dtype}; expected unsigned integers")
    return (values.dtype.type((1 << bits) - 1) - values).astype(values.dtype)


def _spacing(file: Any, page: Any, axes: str) -> tuple[float, ...] | None:
    """Return the spacing in mm, in the order of ``axes``; None unless it is known for each."""
    found: dict[str, float] = {}
    if file.is_ome:
        pixels = next(e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("}Pixels"))
        for axis in axes:
            size, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
            if size is not None and unit in _MM:
                found[axis] = float(size) * _MM[unit]
    else:
        imagej = file.imagej_metadata or {}
        unit = str(imagej.get("unit", "")).encode().decode("unicode_escape") if file.is_imagej else ""
        tag = page.tags.get("ResolutionUnit")
        per_unit = _MM.get(unit) or ({3: _MM["cm"]}.get(int(tag.value)) if tag is not None else None)
        for axis in "XY":
            resolution = page.tags.get(f"{axis}Resolution")
            if per_unit and resolution is not None and resolution.value[0]:
                found[axis] = per_unit * resolution.value[1] / resolution.value[0]
        if per_unit and "spacing" in imagej:
            found["Z"] = per_unit * float(imagej["spacing"])
    return tuple(found[axis] for axis in axes) if set(axes) <= set(found) else None
