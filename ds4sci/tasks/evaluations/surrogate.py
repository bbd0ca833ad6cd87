"""Evaluation of a surrogate on held-out examples, beside ridge regression and a constant."""

from __future__ import annotations

from functools import partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ds4sci.baselines.ridge import Ridge
from ds4sci.data.surrogate_variables import NormalizedShards
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.tasks.evaluations.comparison import ComparisonFigure, comparison_result, first_middle_last

if TYPE_CHECKING:
    from ds4sci.tasks.surrogate import Surrogate

NETWORK, RIDGE, CONSTANT = "surrogate", "ridge on a quadratic polynomial", "mean of the training data"


def polynomial(x: np.ndarray) -> np.ndarray:
    """Return all monomials of first and second degree of x [m, p], [m, p + p (p + 1) / 2]."""
    pairs = combinations_with_replacement(range(x.shape[1]), 2)
    return np.hstack([x, np.stack([x[:, i] * x[:, j] for i, j in pairs], axis=1)])


def surrogate_evaluation(task: Surrogate) -> Evaluation:
    """Errors of all held-out examples: of the surrogate, of ridge regression on a polynomial, and of a constant.

    The result has ``mean`` (metrics of the surrogate), ``baselines`` (name → the same metrics), ``rows`` (squared
    errors, predicted and true scalars of each example), and ``comparison`` and ``figures`` for the report. The
    attachment ``.png`` shows predicted against true scalars.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        from ds4sci.tasks.evaluations import surrogate_figures as draw

        with torch.no_grad():
            rows = task.evaluate(task.model.eval(), rank=0, world_size=1, device=request.device)
        assert isinstance(task.train, NormalizedShards)
        assert isinstance(task.valid, NormalizedShards)
        x, y = _arrays(task.train[:])
        held_x, held_y = _arrays(task.valid[: len(rows)])
        predicted = {
            RIDGE: Ridge.fit(polynomial(x), y).predict(polynomial(held_x)),
            CONSTANT: np.broadcast_to(y.mean(axis=0), held_y.shape),
        }
        means = {NETWORK: task.summarize(rows)}
        means |= {name: task.summarize(_rows(task, own, held_y)) for name, own in predicted.items()}
        columns = [name for name in ("nrmse", "nrmse_scalars", "nrmse_field") if name in means[NETWORK]]
        figures = []
        scalars = {NETWORK: np.array([row["predicted"] for row in rows])}
        true = np.array([row["true"] for row in rows])
        scalars[RIDGE] = task.variables.split(task.units.physical(predicted[RIDGE]))[0]
        if task.variables.scalars:
            names = task.variables.scalars
            figures.append(
                ComparisonFigure(
                    "scalars", "Predicted and true scalars",
                    f"Predicted against true {', '.join(names)} of {len(rows)} held-out examples",
                    partial(draw.save_scatter, scalars, true, names),
                )
            )  # fmt: skip
        if len(task.variables.field_shape) == 2:
            order = np.argsort([row["mse_field"] for row in rows])
            chosen = first_middle_last(order)
            parameters, outputs = task.held_out_examples()
            found = task.variables.split(task.predict_outputs(parameters[chosen], request.device))[1]
            figures.append(
                ComparisonFigure(
                    "fields", f"Field {task.variables.field}: best, median and worst held-out example",
                    f"True field, prediction and difference of {task.variables.field} for three held-out examples",
                    partial(draw.save_fields, task.variables.split(outputs[chosen])[1], found, task.variables.field),
                )
            )  # fmt: skip
        result = {"mean": means[NETWORK], "baselines": {name: means[name] for name in (RIDGE, CONSTANT)}}
        header = [
            "error / spread of the units",
            *("all" if c == "nrmse" else c.removeprefix("nrmse_") for c in columns),
        ]
        table = [[name, *(f"{own[column]:.4f}" for column in columns)] for name, own in means.items()]
        title = f"{len(rows)} held-out examples of {task.config.data.source}"
        return comparison_result(result, rows, header=header, table=table, title=title, figures=figures)

    return Evaluation(run)


def _arrays(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = zip(*pairs, strict=True)
    return np.stack(inputs), np.stack(targets)


def _rows(task: Surrogate, predicted: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """Rows of ``Surrogate.score`` for outputs [m, t] in normalized units."""
    output, targets = (torch.from_numpy(np.ascontiguousarray(x)) for x in (predicted, true))
    errors = {name: each.tolist() for name, each in task.squared_errors(output, targets).items()}
    own, exact = (task.variables.split(task.units.physical(x))[0].tolist() for x in (predicted, true))
    return [
        {f"mse_{name}": each[i] for name, each in errors.items()} | {"predicted": own[i], "true": exact[i]}
        for i in range(len(true))
    ]
