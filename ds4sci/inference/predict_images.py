"""Segmentation and classification of image files by a trained run, one image at a time; a failure affects only it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ds4sci.data.images import nifti
from ds4sci.data.images.image import Image, load_module
from ds4sci.data.images.image_set import find_images
from ds4sci.data.images.reading import read_image, stem_of
from ds4sci.data.images.recipe import Recipe, resample
from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.predict import FAILED, NOT_ATTEMPTED, PREDICTED, SUMMARY
from ds4sci.inference.prediction_inputs import file_stems
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.machine.memory_errors import describe_error, release_memory
from ds4sci.tasks.build import default_kernels
from ds4sci.tasks.capabilities import ImagePredictor
from ds4sci.train.progress import progress_bar


def predict_images(
    run: Path | str, images: Path | str, out_dir: Path | str, *, which: str = "best", overrides: Sequence[str] = (),
    show: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Predict the image ``images``, or every image below that folder; write OUT/NAME.… and OUT/summary.json.

    Images are prepared by the recipe of the run's dataset. Segmentation: logits of overlapping tiles are averaged, and
    the mask has the voxels of the image, in NIfTI (.nii.gz, RAS+ axes) for a volume with an affine, else in TIFF
    (volumes) or PNG. Classification: the probability of each class is in the summary.

    An image that fails leaves no file, not even one of an earlier run, and is named in the summary with the reason.
    Returns the summary: ``run, name, step, classes, machine, commit, counts, records``.

    Raises ValueError before the first prediction: no image, a task that predicts none, a dataset without a recipe.
    """
    run, images, out_dir = Path(run), Path(images), Path(out_dir)
    if not images.exists():
        raise ValueError(f"{images}: no such image or folder")
    paths = find_images(images) if images.is_dir() else [images]
    root = images if images.is_dir() and paths != [images] else images.parent
    loaded = TrainedRun.load(run, which, overrides)
    task = loaded.task
    if not isinstance(task, ImagePredictor):
        raise loaded.lacks("predict images", "`classes`, `recipe` and `logits`")
    recipe = task.recipe(run)
    names = [path.relative_to(root).as_posix() for path in paths]
    stems = file_stems(
        [name[: len(name) - len(path.name)] + stem_of(path) for name, path in zip(names, paths, strict=True)]
    )
    rows: list[dict[str, Any]] = [{"id": name, "status": NOT_ATTEMPTED, "error": None, "files": []} for name in names]

    def summary() -> dict[str, Any]:
        counts = {status: sum(row["status"] == status for row in rows) for status in (PREDICTED, FAILED, NOT_ATTEMPTED)}
        return {
            "run": str(run), "name": loaded.name, "step": loaded.step, "classes": list(task.classes),
            "machine": provenance.describe(), "commit": provenance.commit(), "counts": counts, "records": rows,
        }  # fmt: skip

    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with default_kernels(loaded.config), progress_bar("predicting", len(paths), shown=show) as advance:
            for path, stem, row in zip(paths, stems, rows, strict=True):
                _attempt(task, recipe, loaded.device, path, out_dir / stem, row)
                if show:
                    result = f"failed: {row['error']}" if row["status"] == FAILED else row["status"]
                    Console(highlight=False, soft_wrap=True).print(f"{row['id']}: {result}", markup=False)
                advance()
    finally:
        replace_text(out_dir / SUMMARY, json.dumps(summary(), indent=1) + "\n")
    return summary()


def _attempt(
    task: ImagePredictor, recipe: Recipe, device: torch.device, path: Path, stem: Path, row: dict[str, Any]
) -> None:
    """Predict one image and fill in its row, whether it succeeds or fails."""
    failure: str | None = None
    for suffix in (".nii.gz", ".tif", ".png"):  # of an earlier run
        stem.with_name(stem.name + suffix).unlink(missing_ok=True)
    try:
        image = read_image(path)
        logits = image_logits(task, recipe, path, image, device)
        if logits.ndim == 1:
            weights = np.exp(logits - logits.max())
            values = (weights / weights.sum()).tolist()
            row["probabilities"] = {name: round(p, 6) for name, p in zip(task.classes, values, strict=True)}
        else:
            mask = resample(logits.argmax(0).astype(np.uint8), image.shape, order=0)
            row["files"] = [_write_mask(stem, mask, image).name]
            counts = np.bincount(mask.ravel(), minlength=len(task.classes)).tolist()
            row["voxels"] = dict(zip(task.classes, counts, strict=True))
        row["status"] = PREDICTED
    except Exception as error:  # any error fails one image only; the summary and the exit code report it
        failure = describe_error(error, 0) if not isinstance(error, ValueError) else str(error)
    if failure is not None:  # outside the handler, where no traceback keeps tensors alive
        row |= {"status": FAILED, "error": failure, "files": []}
        release_memory()


def image_logits(task: ImagePredictor, recipe: Recipe, path: Path, image: Image, device: torch.device) -> np.ndarray:
    """Return logits [classes, …] on the grid of ``recipe.prepare``, or [classes] of a whole image.

    Where tiles overlap, their logits are averaged.
    """
    values = recipe.prepare(path, image)
    shape = values.shape[1:]
    values = recipe.padded(values, 0.0)
    places = list(recipe.tiles(values.shape[1:]))
    logits = task.logits(np.stack([values[(slice(None), *place)] for place in places]), device)
    if logits.ndim == 2:
        return logits.mean(0)
    total = np.zeros((logits.shape[1], *values.shape[1:]), np.float32)
    count = np.zeros(values.shape[1:], np.float32)
    for place, tile in zip(places, logits, strict=True):
        total[(slice(None), *place)] += tile
        count[place] += 1
    return (total / count)[(slice(None), *(slice(0, n) for n in shape))]


def _write_mask(stem: Path, mask: np.ndarray, image: Image) -> Path:
    """Write a mask beside its final name, and rename it: a process that is killed leaves no half file."""
    suffix = ".nii.gz" if image.affine is not None else ".tif" if mask.ndim == 3 else ".png"
    path = stem.with_name(stem.name + suffix)
    partial = stem.with_name(f".{stem.name}.partial{suffix}")
    try:
        if image.affine is not None:
            nifti.write(partial, mask, image.affine)
        elif mask.ndim == 3:
            load_module("tifffile", path).imwrite(partial, mask, photometric="minisblack")
        else:
            load_module("PIL.Image", path).fromarray(mask).save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
