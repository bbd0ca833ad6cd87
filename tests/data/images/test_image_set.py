"""Datasets of images: recipe, patient-wise splits, masks, and the fate of every image."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as pillow
from scipy import ndimage
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.data.array_shards import ArrayShards
from ds4sci.data.images import image_set
from ds4sci.data.images.image import Image
from ds4sci.data.images.patients import TableRow, read_table, split_patients
from ds4sci.data.images.recipe import IGNORED, Recipe, resample

RNG = np.random.default_rng(0)


def nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> None:
    """Write [z, y, x] ``values`` with ``spacing`` z, y, x."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five patients with two volumes each, 10 × 12 × 9, and masks of the brightest voxels."""
    for patient in range(5):
        for scan in range(2):
            values = RNG.integers(0, 1000, (10, 12, 9)).astype(np.int16)
            nifti(tmp_path / f"images/p{patient}/s{scan}.nii.gz", values)
            nifti(tmp_path / f"masks/p{patient}/s{scan}.nii", (values > 700).astype(np.uint8))
    return tmp_path


def test_tiles_cover_every_voxel_once_and_carry_their_mask(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=(5, 6, 3), channels=1)
    report = image_set.build(
        folder / "images", tmp_path / "set", recipe, masks=folder / "masks", classes=["a", "b"], patients="folder",
        valid_fraction=0.4,
    )  # fmt: skip
    train, valid = (ArrayShards.find(tmp_path / "set", split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (6 * 12, 4 * 12)
    stored = json.loads((tmp_path / "set/images.json").read_text())
    assert {e["patient"] for e in stored["images"] if e["split"] == "train"}.isdisjoint(
        e["patient"] for e in stored["images"] if e["split"] == "valid"
    )
    assert "valid: 48 examples of 4 images of 2 patients" in str(report)
    inputs, labels = (np.stack(x) for x in zip(*train[:12], strict=True))
    assert inputs.shape == (12, 1, 5, 6, 3)
    first = next(e for e in stored["images"] if e["split"] == "train")
    values = np.asarray(nibabel.load(first["path"]).dataobj).transpose(2, 1, 0).astype(float)
    rebuilt = inputs.reshape(2, 2, 3, 5, 6, 3).transpose(0, 3, 1, 4, 2, 5).reshape(10, 12, 9)
    np.testing.assert_allclose(rebuilt, (values - values.mean()) / values.std(), atol=1e-5)
    assert np.array_equal(labels.reshape(2, 2, 3, 5, 6, 3).transpose(0, 3, 1, 4, 2, 5).reshape(10, 12, 9), values > 700)
    assert Recipe.load(tmp_path / "set") == recipe


def test_small_images_are_padded_without_weight() -> None:
    recipe = Recipe(size=(8, 8), channels=1)
    image = Image(RNG.normal(size=(1, 5, 20)))
    inputs, labels = image_set.examples_of(recipe, Path("x"), image, np.ones((5, 20), np.uint8))
    assert inputs.shape == (3, 1, 8, 8)
    assert np.all(labels[:, 5:] == IGNORED)
    assert np.all(labels[:, :5] == 1)
    assert np.all(inputs[:, :, 5:] == 0)
    places = list(Recipe(size=(8, 8), channels=1, overlap=0.5).tiles((8, 20)))
    assert [place[1].start for place in places] == [0, 4, 8, 12]


def test_resampling_keeps_positions_and_linear_functions() -> None:
    """Voxels are cells: a linear function of the position stays that function, away from the borders."""
    x = np.arange(12.0)
    fine = resample(np.broadcast_to(x, (3, 12)), (3, 24), order=1)
    np.testing.assert_allclose(fine[1, 1:-1], (np.arange(24) + 0.5)[1:-1] / 2 - 0.5)
    coarse = resample(np.broadcast_to(x, (3, 12)), (3, 4), order=1)
    np.testing.assert_allclose(coarse[0, 1:-1], [4, 7])
    labels = RNG.integers(0, 5, (6, 7, 8))
    assert np.array_equal(resample(labels, (12, 14, 16), order=0), labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    noise = RNG.normal(size=(9, 10))
    zoomed = ndimage.zoom(noise, (2, 3), order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(resample(noise, (18, 30), order=1), zoomed, atol=1e-12)


def test_anisotropic_voxels_are_resampled_to_the_spacing(tmp_path: Path) -> None:
    z, y, x = np.meshgrid(np.arange(6), np.arange(16), np.arange(16), indexing="ij")
    thick = np.exp(-((3 * (z - 2.5)) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2) / 30).astype(np.float32)
    image = Image(thick[None], spacing=(3.0, 1.0, 1.0))
    recipe = Recipe(size=(16, 16, 16), channels=1, spacing=(1.0, 1.0, 1.0), normalize="none")
    values = recipe.prepare(Path("x"), image)[0]
    assert values.shape == (18, 16, 16)
    profile = values[:, 7:9, 7:9].mean((1, 2))
    across = values[8:10, :, 7:9].mean((0, 2))
    np.testing.assert_allclose(profile[1:-1], across, atol=0.07)  # a ball is a ball
    with pytest.raises(ValueError, match=r"x: its voxel spacing is unknown, but images are resampled to"):
        recipe.prepare(Path("x"), Image(thick[None]))


def test_patients_are_split_by_their_name_and_not_by_the_order() -> None:
    names = [f"p{i}" for i in range(40)]
    split = split_patients(names, 0.25, seed=1)
    assert sum(one == "valid" for one in split.values()) == 10
    assert split_patients(names[::-1] * 2, 0.25, seed=1) == split
    assert split_patients(names, 0.25, seed=2) != split
    with pytest.raises(ValueError, match="only the patient p: a split by patients needs two or more"):
        split_patients(["p", "p"], 0.5, 0)


def test_a_table_names_patients_labels_and_splits(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        pixels = RNG.integers(0, 255, (9, 11)).astype(np.uint8)
        (tmp_path / "x").mkdir(exist_ok=True)
        pillow.fromarray(pixels).save(tmp_path / f"x/{name}.png")
    table = tmp_path / "t.csv"
    rows = [
        "file,patient,label,split",
        "a.png,1,ill,train",
        "b.png,1,well,train",
        "c.png,2,ill,valid",
        "d.png,3,well,valid",
    ]
    table.write_text("\n".join(rows))
    recipe = Recipe(size=(8, 8), channels=1, fit="whole")
    image_set.build(tmp_path / "x", tmp_path / "set", recipe, classes=["well", "ill"], table=read_table(table))
    train = ArrayShards.find(tmp_path / "set", "train")
    assert [int(target) for _, target in train[:]] == [1, 0]
    assert train[0][0].shape == (1, 8, 8)
    table.write_text("\n".join([*rows[:3], "c.png,1,ill,valid", rows[4]]))
    with pytest.raises(ValueError, match=r"c\.png is in valid, but a\.png of the same patient '1' in train"):
        image_set.build(tmp_path / "x", tmp_path / "other", recipe, classes=["well", "ill"], table=read_table(table))
    assert not (tmp_path / "other").exists()
    for text, message in (
        ("file,age\na.png,3\n", "columns file, age; expected file, and any of patient, label and split"),
        ("file\na.png\na.png\n", r"line 3: a\.png is named twice"),
        ("file,split\na.png,test\n", "line 2: split 'test'; expected train or valid"),
        ("file,patient\na.png\n", "line 2: another number of cells than the 2 columns"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_table(table)
    table.write_text("file,label,patient\n" + "".join(f"{n}.png,sick,{n}\n" for n in "abcd"))
    with pytest.raises(ValueError, match=r"a\.png: label 'sick'; expected one of well, ill"):
        image_set.build(tmp_path / "x", tmp_path / "other", recipe, classes=["well", "ill"], table=read_table(table))


def test_unsuitable_images_are_refused_or_reported(folder: Path, tmp_path: Path) -> None:
    """Each fault stops the command with file and reason; with --bad skip, the others are used and it is listed."""
    nifti(folder / "images/p4/s1.nii.gz", RNG.normal(size=(10, 12, 9)), spacing=(2, 1, 1))
    (folder / "images/p1/s0.nii.gz").write_bytes(b"damaged")
    (folder / "masks/p2/s0.nii").unlink()
    nifti(folder / "masks/p3/s0.nii", np.zeros((10, 12, 8), np.uint8))
    nifti(folder / "masks/p4/s0.nii", np.full((10, 12, 9), 2, np.uint8))
    np.savez(folder / "images/p4/flat.npz", image=np.ones((4, 4)))
    nifti(folder / "masks/p4/flat.nii", np.zeros((1, 4, 4), np.uint8))
    command = ["data", "images", str(folder / "images"), str(tmp_path / "set"), "--size", "5,6,3", "--masks"]
    command += [str(folder / "masks"), "--classes", "a,b", "--patients", "folder", "--fraction", "0.4"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code != 0
    assert not (tmp_path / "set").exists()
    done = CliRunner().invoke(app, [*command, "--bad", "skip"])
    assert done.exit_code == 0, done.output
    assert "5 of 11 images" in done.output
    stored = {e["name"]: e for e in json.loads((tmp_path / "set/images.json").read_text())["images"]}
    assert len(stored) == 11
    for name, reason in (
        ("p4/s1.nii.gz", "voxel spacing [2.0, 1.0, 1.0] mm, but"),
        ("p1/s0.nii.gz", "cannot be read"),
        ("p2/s0.nii.gz", "no mask p2/s0.*"),
        ("p3/s0.nii.gz", "a mask of shape [10, 12, 8]; its image has [10, 12, 9]"),
        ("p4/s0.nii.gz", "class 2; 2 classes are named, 0 to 1"),
        ("p4/flat.npz", "a mask of shape [1, 4, 4]; its image has [4, 4]"),
    ):
        assert stored[name]["status"] == "left out", name
        assert reason in stored[name]["reason"], (name, stored[name]["reason"])
    with pytest.raises(ValueError, match=r"masks/p0/s0\.nii: class 1; 0 classes are named"):
        image_set.build(
            folder / "images", tmp_path / "b", Recipe((5, 6, 3), 1), masks=folder / "masks", patients="folder"
        )
    with pytest.raises(ValueError, match=r"x: \[4, 4\]; expected a volume \[z, y, x\]"):
        Recipe((4, 4, 4), 1).prepare(Path("x"), Image(np.ones((1, 4, 4))))
    with pytest.raises(ValueError, match=r"x: 3 channels; expected 1"):
        Recipe((4, 4), 1).prepare(Path("x"), Image(np.ones((3, 4, 4))))
    with pytest.raises(ValueError, match=r"x: a channel with a single value"):
        Recipe((4, 4), 1).prepare(Path("x"), Image(np.ones((1, 4, 4))))
    rows = {"p0/s0.nii.gz": TableRow(patient="1")}
    with pytest.raises(ValueError, match=r"p0/s1\.nii\.gz: not in the table"):
        image_set.build(folder / "images", tmp_path / "b", Recipe((5, 6, 3), 1), table=rows)
