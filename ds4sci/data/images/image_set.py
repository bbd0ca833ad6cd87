"""Dataset of images: files and masks read, prepared by a recipe, split by patient and written as shards of tiles.

Every image is kept, or left out with a reason; ``images.json`` in the folder lists them with patient, split, shape and
spacing, and holds the recipe, which inference applies again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.array_shards import write_shard
from ds4sci.data.images.dicom import series_key
from ds4sci.data.images.image import Image
from ds4sci.data.images.patients import SPLITS, TableRow, check_split, split_patients
from ds4sci.data.images.reading import read_image, stem_of, suffix_of
from ds4sci.data.images.recipe import IGNORED, Recipe
from ds4sci.files.atomic_files import new_folder, refuse_full

SHARD_BYTES = 128 << 20
"""Most bytes of the inputs of a shard."""
PATIENTS = ("metadata", "folder", "file")


@dataclass
class Entry:
    """One image of the dataset.

    name    path relative to the folder of the images
    status  ``kept``, or ``left out`` for ``reason``
    """

    name: str
    path: Path
    patient: str | None = None
    label: str | None = None
    split: str | None = None
    status: str = "left out"
    reason: str | None = None
    shape: list[int] = field(default_factory=list)
    spacing: list[float] | None = None
    tiles: int = 0

    def leave_out(self, reason: str) -> None:
        """Record why the image is not used."""
        self.status, self.reason = "left out", reason

    def as_json(self) -> dict[str, Any]:
        """Return the entry as plain values."""
        return {key: value for key, value in vars(self).items() if key != "path"} | {"path": str(self.path)}


@dataclass(frozen=True)
class Report:
    """Outcome of ``build``."""

    folder: Path
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        kept = [e for e in self.entries if e.status == "kept"]
        lines = [f"{self.folder}: {len(kept)} of {len(self.entries)} images"]
        for split in SPLITS:
            own = [e for e in kept if e.split == split]
            patients = len({e.patient for e in own})
            lines.append(f"{split}: {sum(e.tiles for e in own)} examples of {len(own)} images of {patients} patients")
        lines += [f"left out: {e.name}: {e.reason}" for e in self.entries if e.status != "kept"]
        return "\n".join(lines)


def find_images(folder: Path) -> list[Path]:
    """Return the images below ``folder``, by name: files, and folders that hold the slices of one DICOM series.

    Raises ValueError if there are none.
    """
    found: list[Path] = []
    for place, _, names in sorted(os.walk(folder)):
        files = [Path(place) / name for name in sorted(names)]
        slices = [file for file in files if suffix_of(file) == ".dcm"]
        if len(slices) > 1 and _is_series(slices[0]):
            found.append(Path(place))
            files = [file for file in files if file not in slices]
        found += [file for file in files if suffix_of(file) is not None]
    if not found:
        raise ValueError(f"{folder}: no image below this folder; expected files of TIFF, PNG, NIfTI, DICOM or NPZ")
    return found


def _is_series(path: Path) -> bool:
    try:
        return series_key(path) is not None
    except ValueError:
        return False  # reading the file reports what is wrong with it


def build(
    images: Path, out: Path, recipe: Recipe, *, masks: Path | None = None, classes: Sequence[str] = (),
    table: Mapping[str, TableRow] | None = None, patients: str = "metadata", valid_fraction: float = 0.2, seed: int = 0,
    strict: bool = True, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:  # fmt: skip
    """Write the images below the folder ``images`` as the new dataset ``out``.

    masks           folder with a mask of the same relative name (any format) for each image; targets are then classes
    classes         names of the classes 0, 1, …; with masks, or for the column ``label`` of ``table``
    table           name → row of ``patients.read_table``
    patients        where the patient of an image is named, unless the table says it: ``metadata`` (DICOM, NPZ),
                    ``folder`` (the first folder of the relative name) or ``file`` (each image is of its own patient)
    valid_fraction  fraction of the patients to hold out, if the table has no column ``split``
    strict          a damaged or unsuitable image is an error; otherwise it is left out and reported
    progress        called with (images read, all images)

    The folder appears complete or not at all. Raises ValueError, naming the file, for what ``strict`` refuses, a
    patient in two splits, an image without a patient or a label, a class without a name, and an empty split.
    """
    if patients not in PATIENTS:
        raise ValueError(f"patients {patients!r}; expected one of {', '.join(PATIENTS)}")
    refuse_full(out)
    entries = _entries(images, table or {}, patients)
    labelled = masks is None and any(entry.label is not None for entry in entries)
    if labelled and recipe.fit != "whole":
        raise ValueError("labels of whole images need fit = whole: an example is then an image, and not a tile of it")
    mask_files = {} if masks is None else _by_stem(masks)
    with new_folder(out) as folder:
        writers = {split: ShardWriter(folder, split) for split in SPLITS}
        if patients != "metadata" or all(entry.patient for entry in entries):
            _assign(entries, valid_fraction, seed)
        else:  # the files must be read to know the patients
            _read_patients(entries, strict)
            _assign(entries, valid_fraction, seed)
        same_spacing = SameSpacing(recipe)
        for number, entry in enumerate(entries):
            if entry.reason is None:
                try:
                    image = read_image(entry.path)
                    same_spacing.check(entry.path, image)
                    examples, targets = _examples(entry, image, images, recipe, masks, mask_files, classes, labelled)
                    writers[str(entry.split)].add(examples, targets)
                    entry.tiles, entry.status = len(examples), "kept"
                except ValueError as error:
                    if strict:
                        raise
                    entry.leave_out(str(error))
            progress(number + 1, len(entries))
        counts = {split: writer.close() for split, writer in writers.items()}
        for split, count in counts.items():
            if not count:
                reasons = "; ".join(str(entry.reason) for entry in entries if entry.reason)[:300]
                raise ValueError(f"{images}: no example for {split}. {reasons}")
        recipe.save(
            folder, classes=list(classes), seed=seed, images=[entry.as_json() for entry in entries],
            target="mask" if masks is not None else "label" if labelled else "none",
        )  # fmt: skip
    return Report(out, tuple(entries))


def _entries(images: Path, table: Mapping[str, TableRow], patients: str) -> list[Entry]:
    entries = []
    for path in find_images(images):
        name = path.relative_to(images).as_posix()
        row = table.get(name)
        if table and row is None:
            raise ValueError(f"{name}: not in the table, whose column file has names relative to {images}")
        row = row or TableRow()
        patient = row.patient
        if patient is None and patients != "metadata":
            patient = name.split("/")[0] if patients == "folder" else name
        if patients == "folder" and row.patient is None and "/" not in name:
            raise ValueError(f"{name}: in no folder of a patient; expected {images}/PATIENT/{path.name}")
        entries.append(Entry(name, path, patient, row.label, row.split))
    unknown = set(table) - {entry.name for entry in entries}
    if unknown:
        raise ValueError(f"the table names {sorted(unknown)[0]}, which is not below {images}")
    return entries


def _read_patients(entries: list[Entry], strict: bool) -> None:
    """Set the patient of each entry from its file."""
    for entry in entries:
        try:
            entry.patient = entry.patient or read_image(entry.path).patient
            if entry.patient is None:
                raise ValueError(
                    f"{entry.path}: the file names no patient; use --patients folder or file, or a table with the "
                    "column patient"
                )
        except ValueError as error:
            if strict:
                raise
            entry.leave_out(str(error))


def _assign(entries: list[Entry], fraction: float, seed: int) -> None:
    """Set the split of each entry, by patient. Raises ValueError for a patient in two splits."""
    usable = [entry for entry in entries if entry.reason is None]
    given = [entry for entry in usable if entry.split is not None]
    if given and len(given) < len(usable):
        missing = next(entry.name for entry in usable if entry.split is None)
        raise ValueError(f"{missing}: no split in the table, where other images have one")
    if not given:
        splits = split_patients([str(entry.patient) for entry in usable], fraction, seed)
        for entry in usable:
            entry.split = splits[str(entry.patient)]
    check_split({e.name: str(e.patient) for e in usable}, {e.name: str(e.split) for e in usable})


def _by_stem(masks: Path) -> dict[str, Path]:
    """Return relative name without suffix → mask."""
    return {(path.parent / stem_of(path)).relative_to(masks).as_posix(): path for path in find_images(masks)}


def _examples(
    entry: Entry, image: Image, images: Path, recipe: Recipe, masks: Path | None, mask_files: Mapping[str, Path],
    classes: Sequence[str], labelled: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    entry.shape, entry.spacing = list(image.shape), None if image.spacing is None else list(image.spacing)
    if masks is not None:
        stem = (entry.path.parent / stem_of(entry.path)).relative_to(images).as_posix()
        if stem not in mask_files:
            raise ValueError(f"{entry.path}: no mask {stem}.* below {masks}")
        return examples_of(recipe, entry.path, image, read_mask(mask_files[stem], image, len(classes)))
    examples, _ = examples_of(recipe, entry.path, image, None)
    if not labelled:
        return examples, np.zeros(len(examples), np.uint8)
    if entry.label not in classes:
        raise ValueError(f"{entry.path}: label {entry.label!r}; expected one of {', '.join(classes)}")
    return examples, np.full(len(examples), list(classes).index(str(entry.label)), np.uint8)


def read_mask(path: Path, image: Image, classes: int) -> np.ndarray:
    """Return the class numbers of a mask, uint8 with the spatial shape of ``image``.

    Raises ValueError for another shape or spacing than that of ``image``, and for a class that has no name.
    """
    mask = read_image(path, labels=True)
    if mask.shape != image.shape:
        raise ValueError(f"{path}: a mask of shape {list(mask.shape)}; its image has {list(image.shape)}")
    if mask.spacing and image.spacing and not np.allclose(mask.spacing, image.spacing, rtol=1e-3):
        raise ValueError(f"{path}: a mask with spacing {list(mask.spacing)} mm; its image has {list(image.spacing)}")
    if mask.values.max() >= min(classes, IGNORED):
        raise ValueError(f"{path}: class {mask.values.max()}; {classes} classes are named, 0 to {classes - 1}")
    return mask.values[0].astype(np.uint8)


def examples_of(recipe: Recipe, path: Path, image: Image, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles of an image, float32 [k, c, …], and those of its mask, uint8 [k, …] (without mask: zeros).

    Tiles with a single value are left out, unless all are.
    """
    values = recipe.padded(recipe.prepare(path, image), 0.0)
    labels = np.zeros(values.shape[1:], np.uint8)
    if mask is not None:
        labels = recipe.padded(recipe.prepare_labels(path, image, mask), IGNORED)
    places = list(recipe.tiles(values.shape[1:]))
    kept = [place for place in places if np.ptp(values[(slice(None), *place)]) > 0] or places
    return np.stack([values[(slice(None), *place)] for place in kept]), np.stack([labels[place] for place in kept])


class SameSpacing:
    """Check that images which are not resampled have one voxel spacing: otherwise a tile would have no scale."""

    def __init__(self, recipe: Recipe) -> None:
        self._matters = recipe.spacing is None and recipe.fit == "tiles"
        self._first: tuple[Path, tuple[float, ...]] | None = None

    def check(self, path: Path, image: Image) -> None:
        """Raise ValueError if the spacing of ``image`` is another than that of the images before it."""
        if not self._matters or image.spacing is None:
            return
        self._first = self._first or (path, image.spacing)
        other, spacing = self._first
        if len(spacing) == len(image.spacing) and not np.allclose(spacing, image.spacing, rtol=1e-2):
            raise ValueError(
                f"{path}: voxel spacing {list(image.spacing)} mm, but {other} has {list(spacing)} mm; resample all "
                "images with --spacing"
            )


class ShardWriter:
    """Writer of the shards of one split, each of at most ``SHARD_BYTES``."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._bytes = self._shards = self._count = 0

    def add(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Add examples; write a shard when there are enough."""
        self._parts.append((inputs, targets))
        self._bytes += inputs.nbytes
        self._count += len(inputs)
        if self._bytes >= SHARD_BYTES:
            self._write()

    def close(self) -> int:
        """Write what is left; return the number of examples of the split."""
        if self._parts:
            self._write()
        return self._count

    def _write(self) -> None:
        inputs, targets = (np.concatenate(x) for x in zip(*self._parts, strict=True))
        write_shard(self.folder, self.split, self._shards, inputs, targets)
        self._parts, self._bytes, self._shards = [], 0, self._shards + 1
