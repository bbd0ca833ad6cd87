"""Evaluation of segmentation on the sphere, beside thresholds of vorticity and wind speed where the data are winds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ds4sci.baselines.wind_thresholds import WindThresholds
from ds4sci.metrics.images import confusion, iou
from ds4sci.tasks.array_task import ArrayExample, collate
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.comparison import ComparisonFigure, comparison_result, first_middle_last

if TYPE_CHECKING:
    from ds4sci.tasks.segmentation import Segmentation

NETWORK, THRESHOLDS, CONSTANT = "network", "thresholds of vorticity and speed", "background everywhere"
WINDS = ("u", "v")
"""Channels of a dataset of winds, for which the thresholds are measured."""
SHOWN = 3
"""Held-out examples in the picture: highest, median and lowest mean IoU."""


def segmentation_evaluation(task: Segmentation) -> Evaluation:
    """IoU of each class on all held-out examples: of the network and of the baselines.

    The baseline of winds (channels ``u`` and ``v``, two classes beside the background) thresholds the vorticity and the
    speed of the same inputs; its thresholds are fitted on the training data.

    The result has ``mean`` (metrics of the network), ``baselines`` (name → the same metrics), ``thresholds``, ``rows``
    (confusion matrix of each example), and ``comparison`` and ``figures`` for the report. The attachment ``.png`` shows
    fields and masks.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        with torch.no_grad():
            rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=request.device)
        examples = task.valid[: len(rows)]
        inputs, labels = (np.stack(x) for x in zip(*examples, strict=True))
        metrics = {NETWORK: task.summarize(rows)}
        masks: dict[str, np.ndarray] = {}
        thresholds: dict[str, float] = {}
        if task.channels == WINDS and len(task.classes) == 3:
            winds, classes = (np.stack(x) for x in zip(*task.train[:], strict=True))
            fitted = WindThresholds.fit(winds, classes)
            masks[THRESHOLDS] = fitted.predict(inputs)
            thresholds = vars(fitted)
        for name, predicted in (masks | {CONSTANT: np.zeros_like(labels)}).items():
            metrics[name] = task.iou_metrics(confusion(labels, predicted, len(task.classes)))
        order = np.argsort([-np.nanmean(iou(np.array(row["confusion"]))) for row in rows])
        chosen = first_middle_last(order)
        masks = {NETWORK: _predict(task, chosen, request.device)} | {k: x[chosen] for k, x in masks.items()}
        from ds4sci.tasks.evaluations import segmentation_figures as draw

        names = [rows[i]["id"] for i in chosen]
        columns = list(metrics[NETWORK])
        return comparison_result(
            {
                "mean": metrics[NETWORK],
                "baselines": {name: own for name, own in metrics.items() if name != NETWORK},
                "thresholds": thresholds,
            },
            rows,
            header=["IoU", "mean", *(key.removeprefix("iou_").replace("_", " ") for key in columns[1:])],
            table=[
                [name, *(f"{own[key]:.4f}" if key in own else "–" for key in columns)] for name, own in metrics.items()
            ],
            title=f"{len(rows)} held-out examples",
            figures=[
                ComparisonFigure(
                    "maps", "Held-out examples: highest, median and lowest mean IoU",
                    f"Fields and masks of {', '.join(names)}",
                    partial(
                        draw.save_maps, inputs[chosen], labels[chosen], masks, task.classes, task.channels, names
                    ),
                )
            ],
        )  # fmt: skip

    return Evaluation(run)


def _predict(task: Segmentation, numbers: list[int], device: torch.device) -> np.ndarray:
    batch = collate([ArrayExample(str(i), *task.valid[i]) for i in numbers]).to(device)
    with torch.no_grad():
        return task.model(batch).argmax(1).cpu().numpy()
