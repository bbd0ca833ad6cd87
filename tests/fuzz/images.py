"""Fuzz inputs of the image readers: damaged TIFF, PNG, NIfTI, DICOM and NPZ files of images and masks."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from PIL import Image as pillow

from ds4sci.data.images.reading import read_image, suffix_of
from tests.data.images.test_readers import dicom

from .mutation import mutate, pick
from .reading import Violation, temporary_folder

SHARE = 0.3
TOKENS = [
    b"II*\0",
    b"IDAT",
    b"IEND",
    b"PLTE",
    b"n+1\0",
    b"PK\x03\x04",
    b"\xe0\x7f\x10\x00",
    b"\0\0",
    b"\xff\xff\xff\xff",
]
_CUT = b"cut"
"""Mark of an input that is a whole file without its end."""


def prepare() -> None:
    """Write the whole files, which takes longer than the time limit of an input on a busy machine."""
    whole_files()
    for name in ("tifffile", "pydicom"):
        logging.getLogger(name).propagate = False
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@cache
def whole_files() -> dict[str, bytes]:
    """Name → content of small files, several of each format."""
    rng, folder = np.random.default_rng(0), temporary_folder() / "images"
    folder.mkdir()
    grey, volume = rng.integers(0, 60_000, (9, 11)).astype(np.uint16), rng.normal(size=(4, 5, 6)).astype(np.float32)
    colours, classes = rng.integers(0, 255, (9, 11, 3)).astype(np.uint8), rng.integers(0, 3, (9, 11)).astype(np.uint8)
    tifffile.imwrite(folder / "a.tif", grey)
    tifffile.imwrite(folder / "b.tif", colours, photometric="rgb", compression="zlib", rowsperstrip=2)
    tifffile.imwrite(folder / "c.tif", volume, imagej=True, metadata={"unit": "um", "spacing": 2.0, "axes": "ZYX"})
    tifffile.imwrite(folder / "d.ome.tif", np.tile(grey, (3, 2, 2)), metadata={"axes": "ZYX", "PhysicalSizeX": 0.5})
    pillow.fromarray(grey).save(folder / "a.png")
    pillow.fromarray(colours).save(folder / "b.png")
    pillow.fromarray(classes).save(folder / "c.png")
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image((9 * volume).astype(np.int16), affine), folder / "b.nii.gz")
    dicom(folder / "a.dcm", grey, PixelSpacing=[0.7, 0.4], RescaleSlope=2, RescaleIntercept=-1)
    dicom(folder / "b.dcm", colours)
    dicom(folder / "c.dcm", (1000 * volume).astype(np.int16), PixelSpacing=[2, 3], SpacingBetweenSlices=4)
    np.savez(folder / "a.npz", image=volume, spacing=np.array([1.0, 2.0, 3.0]), axes="ZYX", patient="p")
    np.savez_compressed(folder / "b.npz", image=classes)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def inputs(rng: np.random.Generator) -> bytes:
    """The name of a whole file, a NUL and its content, damaged; with the mark ``cut`` before the name, cut off."""
    whole = whole_files()
    name = list(whole)[int(rng.integers(len(whole)))]
    if rng.random() < 0.3:
        return _CUT + name.encode() + b"\0" + whole[name][: int(rng.integers(len(whole[name])))]
    same = [content for other, content in whole.items() if suffix_of(Path(other)) == suffix_of(Path(name))]
    if rng.random() < 0.5:  # one bit or byte, as a medium damages files
        content = bytearray(pick(rng, same))
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
        return name.encode() + b"\0" + bytes(content)
    return name.encode() + b"\0" + mutate(rng, whole[name], same, TOKENS)


def check(data: bytes) -> None:
    """The reader returns a usable image, the same one if only bytes after it are lost, or an error with the file."""
    mark, _, content = data.partition(b"\0")
    name = mark.removeprefix(_CUT).decode()
    path = temporary_folder() / name
    path.write_bytes(content)
    for labels in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = read_image(path, labels=labels)
            except ValueError as error:
                if type(error) is not ValueError or str(path) not in str(error):
                    raise Violation(f"{type(error).__name__} does not name {name}: {error}") from error
                continue
        if image.values.size == 0 or image.values.dtype.kind not in "iuf" or not np.isfinite(image.values).all():
            raise Violation(f"{name}: values of shape {image.values.shape}, {image.values.dtype}, not all finite")
        if image.spacing is not None and not min(image.spacing) > 0:
            raise Violation(f"{name}: spacing {image.spacing}")
        if mark.startswith(_CUT) and not labels:
            _check_same(path, image.values, image.spacing)


def _check_same(path: Path, values: np.ndarray, spacing: tuple[float, ...] | None) -> None:
    whole = temporary_folder() / "images" / path.name
    expected = read_image(whole)
    if spacing != expected.spacing or not np.array_equal(values, expected.values):
        raise Violation(f"{path.name}: the file without its end is read as another image")
