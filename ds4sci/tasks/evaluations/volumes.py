"""Evaluation of regression from volumes, beside ridge regression on power spectra and moments."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ds4sci.baselines.ridge import Ridge, volume_statistics
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.comparison import ComparisonFigure, comparison_result

if TYPE_CHECKING:
    from ds4sci.tasks.volume_regression import VolumeRegression

RIDGE_VOLUMES = 4096
"""Training volumes of the ridge regression, the first ones."""
NETWORK, RIDGE, CONSTANT = "network", "ridge on P(k) and moments", "mean of the training data"


def volume_evaluation(task: VolumeRegression) -> Evaluation:
    """Mean absolute error of all held-out volumes: of the network, of ridge regression, and of a constant.

    The result has ``mean`` (metrics of the network), ``baselines`` (name → the same metrics), ``rows`` (predicted and
    true targets of each volume, ``ridge``), and ``comparison`` and ``figures`` for the report. The attachment ``.png``
    shows predicted against true targets.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        with torch.no_grad():
            rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=request.device)
        true = np.array([row["true"] for row in rows])
        ridge, constant = _baselines(task, len(rows), request)
        means = {
            NETWORK: task.summarize(rows),
            RIDGE: _summary(task, ridge, true),
            CONSTANT: _summary(task, np.broadcast_to(constant, true.shape), true),
        }
        for row, own in zip(rows, ridge.tolist(), strict=True):
            row["ridge"] = own
        columns = ["mae", *(f"mae_{name}" for name in task.names)]
        predictions = {NETWORK: np.array([row["predicted"] for row in rows]), RIDGE: ridge}
        volume = task.valid[0][0].astype(np.float64)
        from ds4sci.tasks.evaluations import volume_figures as draw

        return comparison_result(
            {"mean": means[NETWORK], "baselines": {name: means[name] for name in (RIDGE, CONSTANT)}},
            rows,
            header=["mean absolute error", "all", *task.names],
            table=[[name, *(f"{own[column]:.4f}" for column in columns)] for name, own in means.items()],
            title=f"{len(rows)} held-out volumes",
            figures=[
                ComparisonFigure(
                    "scatter", "Predicted and true targets",
                    f"Predicted against true {', '.join(task.names)} of {len(rows)} held-out volumes",
                    partial(draw.save_scatter, predictions, true, task.names),
                ),
                ComparisonFigure(
                    "slices", "Slices of the first held-out volume",
                    f"Central slice of the channels {', '.join(task.channels)}",
                    partial(draw.save_slices, volume, task.channels),
                ),
            ],
        )  # fmt: skip

    return Evaluation(run)


def _baselines(task: VolumeRegression, held_out: int, request: EvaluationRequest) -> tuple[np.ndarray, np.ndarray]:
    """Return the predictions [m, t] of ridge regression for the held-out volumes, and the mean of the targets [t]."""
    count = min(RIDGE_VOLUMES, len(task.train))
    features, targets = [], []
    with request.progress("power spectra", count + held_out) as advance:
        for number in range(count + held_out):
            inputs, target = task.train[number] if number < count else task.valid[number - count]
            features.append(volume_statistics(inputs))
            targets.append(target)
            advance()
    x, y = np.stack(features), np.stack(targets[:count]).astype(np.float64)
    return Ridge.fit(x[:count], y).predict(x[count:]), y.mean(axis=0)


def _summary(task: VolumeRegression, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    pairs = zip(predicted.tolist(), true.tolist(), strict=True)
    return task.summarize([{"predicted": a, "true": b} for a, b in pairs])
