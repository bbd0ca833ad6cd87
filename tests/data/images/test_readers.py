"""Image readers against files that the libraries write, and against what the libraries say of them."""

from __future__ import annotations

import logging
import struct
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image as pillow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ds4sci.data.images.reading import read_image

RNG = np.random.default_rng(0)
SERIES = generate_uid(entropy_srcs=["series"])


def dicom(path: Path, stored: np.ndarray, **attributes: object) -> Path:
    """Write ``stored`` (uint16 or int16 [y, x] or [frames, y, x], or uint8 [y, x, 3]) with pydicom."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.SeriesInstanceUID, dataset.Modality = "P7", SERIES, "CT"
    colour = stored.dtype == np.uint8
    dataset.Rows, dataset.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        dataset.PlanarConfiguration = 0
    elif stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    bits = 8 * stored.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for key, value in attributes.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_dicom_scales_and_signs(tmp_path: Path) -> None:
    stored = RNG.integers(-2000, 3000, (5, 7)).astype(np.int16)
    path = dicom(tmp_path / "ct.dcm", stored, RescaleSlope=2.5, RescaleIntercept=-1024, PixelSpacing=[0.7, 0.4])
    image = read_image(path)
    assert image.values.dtype == np.float32
    np.testing.assert_allclose(image.values[0], 2.5 * stored.astype(float) - 1024)
    library = pydicom.pixels.apply_modality_lut(pydicom.dcmread(path).pixel_array, pydicom.dcmread(path))
    np.testing.assert_allclose(image.values[0], library)
    assert (image.spacing, image.patient) == ((0.7, 0.4), "P7")
    assert np.array_equal(
        read_image(dicom(tmp_path / "u.dcm", (stored + 2000).astype(np.uint16))).values[0], stored + 2000
    )
    mask = dicom(tmp_path / "m.dcm", np.full((2, 2), 3, np.uint16), RescaleSlope=2, RescaleIntercept=1)
    assert np.array_equal(read_image(mask, labels=True).values[0], np.full((2, 2), 3)), "classes are not scaled"


def test_dicom_monochrome1_is_bright_where_the_others_are(tmp_path: Path) -> None:
    """Inverting the stored values twice is the identity, and the darkest of 12 bits is the brightest."""
    stored = RNG.integers(0, 4096, (4, 6)).astype(np.uint16)
    kind = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    image = read_image(dicom(tmp_path / "x.dcm", stored, **kind))
    assert image.values.dtype == np.uint16
    assert np.array_equal(image.values[0], 4095 - stored)
    scaled = read_image(dicom(tmp_path / "y.dcm", stored, **kind, RescaleSlope=0.5, RescaleIntercept=10))
    np.testing.assert_allclose(scaled.values[0], 0.5 * (4095.0 - stored) + 10)
    signed = (stored.astype(np.int32) - 2048).astype(np.int16)
    image = read_image(dicom(tmp_path / "z.dcm", signed, **kind))
    assert np.array_equal(image.values[0], -1 - signed.astype(int))


def test_dicom_frames_and_colours(tmp_path: Path) -> None:
    frames = RNG.integers(0, 9000, (3, 4, 5)).astype(np.uint16)
    image = read_image(dicom(tmp_path / "f.dcm", frames, PixelSpacing=[2, 3], SpacingBetweenSlices=4))
    assert np.array_equal(image.values, frames[None])
    assert image.spacing == (4, 2, 3)
    colours = RNG.integers(0, 255, (4, 5, 3)).astype(np.uint8)
    assert np.array_equal(read_image(dicom(tmp_path / "c.dcm", colours)).values, colours.transpose(2, 0, 1))
    path = dicom(tmp_path / "p.dcm", frames[0], PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(ValueError, match=r"p\.dcm: PhotometricInterpretation 'PALETTE COLOR'; expected MONOCHROME1"):
        read_image(path)


def series(folder: Path, count: int = 5, step: float = 2.5, **attributes: object) -> np.ndarray:
    """Coronal slices of a volume, files in random order; return the values [slice, row, column]."""
    folder.mkdir()
    volume = RNG.integers(0, 4000, (count, 4, 6)).astype(np.uint16)
    for number in RNG.permutation(count):
        # columns run to the left of the patient, rows downwards, slices from front to back
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "ImagePositionPatient": [-9, -20 + step * number, 30]}
        own = {"PixelSpacing": [0.5, 0.75]} | place | attributes
        dicom(folder / f"s{RNG.integers(10**9)}.dcm", volume[number], **own)
    return volume


def test_a_dicom_series_is_a_volume_in_canonical_axes(tmp_path: Path) -> None:
    volume = series(tmp_path / "a")
    image = read_image(tmp_path / "a")
    # [slice, row, column] = [posterior, inferior, left]; expected [z up, y to the front, x to the right]
    expected = volume.transpose(1, 0, 2)[::-1, ::-1, ::-1]
    assert np.array_equal(image.values[0], expected)
    assert image.spacing == pytest.approx((0.5, 2.5, 0.75))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    # the voxel of the first stored pixel is at its position, in RAS coordinates
    place = image.affine @ [5, 4, 3, 1]
    assert place[:3] == pytest.approx([9, 20, 30])
    assert image.values[0, 3, 4, 5] == volume[0, 0, 0]


def test_incomplete_series_are_refused(tmp_path: Path) -> None:
    series(tmp_path / "gap")
    files = {float(pydicom.dcmread(f).ImagePositionPatient[1]): f for f in (tmp_path / "gap").iterdir()}
    files[-15.0].unlink()
    with pytest.raises(
        ValueError, match=r"5\.000 mm from s\d+\.dcm, where slices are 2\.500 mm apart; a slice is missing"
    ):
        read_image(tmp_path / "gap")
    dicom(tmp_path / "gap/other.dcm", np.zeros((4, 6), np.uint16), PatientID="P8")
    with pytest.raises(ValueError, match=r"PatientID is P[78]"):
        read_image(tmp_path / "gap")


def test_nifti_axes_scale_and_units(tmp_path: Path) -> None:
    stored = RNG.integers(-500, 500, (4, 5, 6)).astype(np.int16)
    affine = np.array([[0, 0, -3.0, 1], [-1.0, 0, 0, 2], [0, 2.0, 0, 3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = read_image(tmp_path / "a.nii.gz")
    library = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii.gz"))
    assert np.array_equal(found.values[0].transpose(2, 1, 0), np.asarray(library.dataobj))
    assert found.values.dtype == np.int16
    assert found.spacing == (2, 1, 3), "z is the file's second axis, y its first, x its third"
    np.testing.assert_allclose(found.affine, library.affine)
    scaled = nibabel.Nifti1Image(stored, affine)
    scaled.header.set_slope_inter(0.25, -3)
    scaled.header.set_xyzt_units("micron")
    nibabel.save(scaled, tmp_path / "b.nii")
    found = read_image(tmp_path / "b.nii")
    np.testing.assert_allclose(
        found.values[0].transpose(2, 1, 0), nibabel.as_closest_canonical(nibabel.load(tmp_path / "b.nii")).get_fdata()
    )
    assert found.values.dtype == np.float32
    assert found.spacing == pytest.approx((2e-3, 1e-3, 3e-3))
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3)), affine), tmp_path / "t.nii")
    with pytest.raises(ValueError, match=r"t\.nii: shape \[2, 2, 2, 3\]; expected one volume"):
        read_image(tmp_path / "t.nii")
    holes = np.where(stored == stored[0, 0, 0], np.nan, stored).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(holes, affine), tmp_path / "n.nii")
    with pytest.raises(ValueError, match=r"n\.nii: \d+ of 120 values are NaN"):
        read_image(tmp_path / "n.nii")
    with pytest.raises(ValueError, match=r"b\.nii: a mask with values that are no integers"):
        read_image(tmp_path / "b.nii", labels=True)


def test_tiff_pages_channels_bits_and_spacing(tmp_path: Path) -> None:
    pages = RNG.integers(0, 65535, (3, 4, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    found = read_image(tmp_path / "pages.tif")
    assert np.array_equal(found.values, pages[None])
    assert found.spacing is None
    signed = RNG.integers(-3000, 3000, (4, 5)).astype(np.int16)
    tifffile.imwrite(tmp_path / "signed.tif", signed, resolution=(50, 25), resolutionunit="CENTIMETER")
    found = read_image(tmp_path / "signed.tif")
    assert np.array_equal(found.values, signed[None])
    assert found.spacing == pytest.approx((0.4, 0.2)), "rows are 1/25 cm apart, columns 1/50 cm"
    tifffile.imwrite(tmp_path / "white.tif", pages[0], photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "white.tif").values[0], 65535 - pages[0])
    rgb = RNG.integers(0, 255, (4, 5, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", resolution=(300, 300), resolutionunit="INCH")
    found = read_image(tmp_path / "rgb.tif")
    assert np.array_equal(found.values, rgb.transpose(2, 0, 1))
    assert found.spacing is None, "dots per inch are those of a printer"
    stack = RNG.integers(0, 65535, (3, 2, 4, 5)).astype(np.uint16)
    settings = {"axes": "ZCYX", "spacing": 1.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "ij.tif", stack, imagej=True, resolution=(4, 5), metadata=settings)
    found = read_image(tmp_path / "ij.tif")
    assert np.array_equal(found.values, stack.transpose(1, 0, 2, 3))
    assert found.spacing == pytest.approx((1.5e-3, 0.2e-3, 0.25e-3))
    sizes = {"PhysicalSizeX": 0.3, "PhysicalSizeY": 400, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "o.ome.tif", stack[:, 0], metadata={"axes": "ZYX"} | sizes)
    found = read_image(tmp_path / "o.ome.tif")
    assert np.array_equal(found.values, stack[None, :, 0])
    assert found.spacing == pytest.approx((2e-3, 4e-4, 3e-4))
    tifffile.imwrite(tmp_path / "t.tif", stack[:, :1], imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ValueError, match=r"t\.tif: axes T\w+ of shape \[3, .*split a time series into files"):
        read_image(tmp_path / "t.tif")
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(pages[0])
        file.write(pages[0, :2])
    with pytest.raises(ValueError, match=r"two\.tif: 2 images of different shapes: \[4, 5\], \[2, 5\]"):
        read_image(tmp_path / "two.tif")


def test_png_bits_palettes_and_alpha(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65535, (4, 5)).astype(np.uint16)
    pillow.fromarray(deep).save(tmp_path / "deep.png")
    found = read_image(tmp_path / "deep.png").values
    assert (found.dtype, np.array_equal(found[0], deep)) == (np.uint16, True)
    rgba = RNG.integers(0, 255, (4, 5, 4)).astype(np.uint8)
    pillow.fromarray(rgba).save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match=r"clear\.png: transparent pixels"):
        read_image(tmp_path / "clear.png")
    rgba[..., 3] = 255
    pillow.fromarray(rgba).save(tmp_path / "opaque.png")
    assert np.array_equal(read_image(tmp_path / "opaque.png").values, rgba[..., :3].transpose(2, 0, 1))
    classes = pillow.fromarray(RNG.integers(0, 3, (4, 5)).astype(np.uint8), mode=None).convert("L").convert("P")
    classes.save(tmp_path / "mask.png")
    assert np.array_equal(read_image(tmp_path / "mask.png", labels=True).values[0], np.asarray(classes))
    with pytest.raises(ValueError, match=r"mask\.png: colours from a palette"):
        read_image(tmp_path / "mask.png")
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    (tmp_path / "deep_rgb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    with pytest.raises(ValueError, match=r"deep_rgb\.png: colours of 16 bits, which Pillow cuts to 8 bits"):
        read_image(tmp_path / "deep_rgb.png")
    with pytest.raises(ValueError, match=r"opaque\.png: a mask of 3 channels"):
        read_image(tmp_path / "opaque.png", labels=True)


def test_npz_axes_and_spacing(tmp_path: Path) -> None:
    values = RNG.normal(size=(2, 3, 4))
    np.savez(tmp_path / "a.npz", image=values, spacing=[3.0, 2.0, 1.0], patient="p1")
    found = read_image(tmp_path / "a.npz")
    assert np.array_equal(found.values, values[None])
    assert (found.spacing, found.patient) == ((3, 2, 1), "p1")
    np.savez(tmp_path / "b.npz", image=values, spacing=[2.0, 1.0])
    assert np.array_equal(read_image(tmp_path / "b.npz").values, values), "two spacings: channels and rows, columns"
    np.savez(tmp_path / "c.npz", image=values, axes="XYC", spacing=[1.0, 2.0])
    found = read_image(tmp_path / "c.npz")
    assert np.array_equal(found.values, values.transpose(2, 1, 0))
    assert found.spacing == (2, 1)
    np.savez(tmp_path / "d.npz", picture=values)
    with pytest.raises(ValueError, match=r"d\.npz: no array 'image'; it has picture"):
        read_image(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", image=np.array([{}], object))
    with pytest.raises(ValueError, match=r"e\.npz: cannot be read: Object arrays cannot be loaded"):
        read_image(tmp_path / "e.npz")


@pytest.mark.parametrize("suffix", [".tif", ".png", ".nii", ".nii.gz", ".dcm", ".npz"])
def test_damaged_files_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    """A truncated file, text, and an empty file: ValueError with the name, and never a wrong image."""
    values = RNG.integers(0, 255, (20, 30)).astype(np.uint8)
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".dcm":
        dicom(whole, values.astype(np.uint16))
    elif suffix == ".npz":
        np.savez(whole, image=values)
    elif suffix == ".png":
        pillow.fromarray(values).save(whole)
    elif suffix == ".tif":
        tifffile.imwrite(whole, values)
    else:
        nibabel.save(nibabel.Nifti1Image(values[None], np.eye(4)), whole)
    data = whole.read_bytes()
    for name, content in {"cut": data[: len(data) * 2 // 3], "text": b"no image", "empty": b""}.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.{suffix[1:]}: "):
            read_image(path)
    with pytest.raises(ValueError, match=r"x\.jpg: no image format of that name; expected one of \.tif"):
        read_image(tmp_path / "x.jpg")


def test_an_absent_library_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.nii: reading NIfTI needs nibabel: pip install 'ds4sci\[images\]'"):
        read_image(tmp_path / "a.nii")


def test_a_tiff_stack_without_its_last_pages_is_refused(tmp_path: Path) -> None:
    """tifffile reads the pages that are left, and only logs that others are missing, even if its log is silenced."""
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, RNG.integers(0, 9, (3, 20, 22)).astype(np.uint16), metadata={"axes": "ZYX"})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert tifffile.imread(path).shape == (20, 22)
    level = logging.getLogger("tifffile").level
    for chosen in (logging.NOTSET, logging.CRITICAL):
        logging.getLogger("tifffile").setLevel(chosen)
        try:
            with pytest.raises(ValueError, match=r"stack\.ome\.tif: the file is damaged, truncated, or one of a set"):
                read_image(path)
        finally:
            logging.getLogger("tifffile").setLevel(level)
