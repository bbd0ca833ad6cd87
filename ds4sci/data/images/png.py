"""Reader of PNG files, with Pillow: grey values of 1, 8 or 16 bits, and colours of 8 bits.

The resolution in a PNG file is that of a screen or printer, so that ``spacing`` is None.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ds4sci.data.images.image import Image, load_module

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE = (0, 4), (2, 6), (3,)
"""Colour types of the PNG specification, without and with alpha."""


def read(path: Path, labels: bool) -> Image:
    """See ``ds4sci.data.images.reading.read_image``. The indices of a palette are the classes of ``labels``."""
    pillow = load_module("PIL.Image", path)
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(_SIGNATURE):
        raise ValueError(f"{path}: no PNG file: it does not begin with the PNG signature")
    bits, colour_type = struct.unpack(">BB", header[24:26])
    if colour_type in _COLOUR and bits == 16:
        raise ValueError(f"{path}: colours of 16 bits, which Pillow cuts to 8 bits; convert the image to TIFF")
    if colour_type in _PALETTE and not labels:
        raise ValueError(f"{path}: colours from a palette; expected grey values or RGB (a palette suits masks only)")
    with pillow.open(path) as picture:
        picture.load()
        values = np.asarray(picture)
    if colour_type in (4, 6):  # the last channel is alpha
        if (values[..., -1] != values[..., -1].max()).any() or values[..., -1].max() != np.iinfo(values.dtype).max:
            raise ValueError(f"{path}: transparent pixels, whose values are undefined; remove the alpha channel")
        values = values[..., :-1]
        values = values[..., 0] if values.shape[-1] == 1 else values
    if bits == 16:
        values = values.astype(np.uint16)  # Pillow returns int32 in some modes
    return Image(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0))
