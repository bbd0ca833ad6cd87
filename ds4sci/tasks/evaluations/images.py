"""Evaluation of vision transformers on held-out images, beside intensity thresholds or a constant."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ds4sci.baselines.intensity_thresholds import IntensityThresholds
from ds4sci.metrics.images import confusion, iou
from ds4sci.models.patches import patchify, unpatchify
from ds4sci.tasks.array_task import ArrayExample, collate
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.comparison import ComparisonFigure, comparison_result, first_middle_last

if TYPE_CHECKING:
    from ds4sci.tasks.image import ImageTask

NETWORK, THRESHOLDS, FREQUENT = "network", "thresholds of intensity", "most frequent class"
MEAN = "mean of the visible patches"
FITTED = 256
"""Training examples on which the thresholds are fitted, evenly spaced."""


def image_evaluation(task: ImageTask) -> Evaluation:
    """Metrics on all held-out examples: of the network and of baselines without one.

    Baselines: thresholds of intensity fitted on training data, and the most frequent class (segmentation); the most
    frequent class (classification); the mean intensity of the visible patches (masked autoencoder). The result has
    ``mean``, ``baselines`` (name → metrics), ``rows``, and ``comparison`` and ``figures`` for the report.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        from ds4sci.tasks.evaluations import image_figures as draw

        with torch.no_grad():
            rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=request.device)
        metrics = {NETWORK: task.summarize(rows)}
        figures = []
        if task.head == "segmentation":
            figures = [_segmentation(task, rows, metrics, request.device)]
        elif task.head == "classification":
            matrix = np.sum([row["confusion"] for row in rows], axis=0)
            constant = np.zeros_like(matrix)
            constant[:, np.argmax(task.train_counts())] = matrix.sum(1)
            metrics[FREQUENT] = task.class_metrics(constant)
            figures = [
                ComparisonFigure(
                    "confusion", "Confusion of the classes", "Number of held-out examples of each class and prediction",
                    partial(draw.save_confusion, matrix, task.classes),
                )
            ]  # fmt: skip
        else:
            figures = [_reconstruction(task, rows, metrics, request.device)]
        columns = list(metrics[NETWORK])
        return comparison_result(
            {
                "mean": metrics[NETWORK],
                "baselines": {name: own for name, own in metrics.items() if name != NETWORK},
            },
            rows,
            header=["metric", *(key.replace("_", " ") for key in columns)],
            table=[
                [name, *(f"{own[key]:.4f}" if key in own else "–" for key in columns)] for name, own in metrics.items()
            ],
            title=f"{len(rows)} held-out examples",
            figures=figures,
        )  # fmt: skip

    return Evaluation(run)


def _segmentation(
    task: ImageTask, rows: list[dict[str, Any]], metrics: dict[str, dict[str, float]], device: torch.device
) -> ComparisonFigure:
    """Add the metrics of the baselines to ``metrics``; return the figure of images and masks."""
    from ds4sci.tasks.evaluations import image_figures as draw

    count = len(task.classes)
    chosen = np.unique(np.linspace(0, len(task.train) - 1, min(FITTED, len(task.train))).astype(int))
    inputs, labels = (np.stack(x) for x in zip(*(task.example("train", int(i)) for i in chosen), strict=True))
    thresholds = IntensityThresholds.fit(inputs, labels, count)
    frequent = int(np.argmax(np.bincount(labels[labels >= 0], minlength=count)))
    totals = {THRESHOLDS: np.zeros((count, count), np.int64), FREQUENT: np.zeros((count, count), np.int64)}
    for number in range(len(rows)):
        image, truth = task.example("valid", number)
        known = truth >= 0
        totals[THRESHOLDS] += confusion(truth[known], thresholds.predict(image[None])[0][known], count)
        totals[FREQUENT] += confusion(truth[known], np.full(int(known.sum()), frequent), count)
    metrics |= {name: task.class_metrics(matrix) for name, matrix in totals.items()}
    # examples with several classes first, by their mean IoU
    scores = [np.nanmean(iou(np.array(row["confusion"]))) for row in rows]
    mixed = [i for i, row in enumerate(rows) if np.count_nonzero(np.sum(row["confusion"], axis=1)) == count]
    order = np.array(sorted(mixed or range(len(rows)), key=lambda i: -scores[i]))
    shown = first_middle_last(order)
    examples = [task.example("valid", i) for i in shown]
    images, truths = (np.stack(x) for x in zip(*examples, strict=True))
    masks = {NETWORK: task.logits(images, device).argmax(1), THRESHOLDS: thresholds.predict(images)}
    return ComparisonFigure(
        "masks", "Held-out examples: highest, median and lowest mean IoU", "Images, true masks and predicted masks",
        partial(draw.save_masks, images, truths, masks, task.classes, [rows[i]["id"] for i in shown]),
    )  # fmt: skip


def _reconstruction(
    task: ImageTask, rows: list[dict[str, Any]], metrics: dict[str, dict[str, float]], device: torch.device
) -> ComparisonFigure:
    """Add the error of the mean to ``metrics``; return the figure of reconstructed images."""
    from ds4sci.tasks.evaluations import image_figures as draw

    model, patch = task.model, task.model.config.patch
    if not model.config.normalize_targets:
        errors = []
        for number in range(len(rows)):
            image, mask = task.example("valid", number)
            hidden = unpatchify(torch.as_tensor(mask)[None, :, None].expand(-1, -1, int(np.prod(patch))), patch,
                                model.grid)[0, 0].numpy() == 1  # fmt: skip
            visible = image[:, ~hidden].mean(1, keepdims=True)
            errors.append(float(np.square(image[:, hidden] - visible).mean()))
        metrics[MEAN] = {"score": -float(np.mean(errors)), "squared_error": float(np.mean(errors))}
    else:  # a constant patch has error 1, since targets have variance 1
        metrics["constant patches"] = {"score": -1.0, "squared_error": 1.0}
    shown = first_middle_last(np.argsort([row["squared_error"] for row in rows]))
    batch = collate([ArrayExample(rows[i]["id"], *task.example("valid", i)) for i in shown]).to(device)
    with torch.no_grad():
        output = model.eval()(batch)
    values, patches = output.values[:, 1:].float(), patchify(batch.inputs.float(), patch)
    if model.config.normalize_targets:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        values = values * (variance + 1e-6).sqrt() + mean
    hidden = batch.targets.bool().unsqueeze(-1)
    seen = torch.where(hidden, torch.nan, patches)
    images, visible, whole = (
        unpatchify(x, patch, model.grid).cpu().numpy() for x in (patches, seen, torch.where(hidden, values, patches))
    )
    return ComparisonFigure(
        "reconstruction", "Held-out examples: lowest, median and highest error",
        "Images, their visible patches and the reconstruction",
        partial(draw.save_reconstructions, images, visible, whole, [rows[i]["id"] for i in shown]),
    )  # fmt: skip
