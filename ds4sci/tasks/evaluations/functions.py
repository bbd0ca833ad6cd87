"""Evaluation of a solution operator on unseen functions, against reference solutions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from rich.table import Table

from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult

if TYPE_CHECKING:
    from ds4sci.tasks.neural_operator import NeuralOperatorTask

NUM_FUNCTIONS = 100
BATCH_SIZE = 20
"""Functions predicted at once."""


def function_evaluation(task: NeuralOperatorTask) -> Evaluation:
    """Relative L2 error of ``NUM_FUNCTIONS`` unseen functions, drawn from the seed, against the reference solution.

    Neither training nor the evaluations during training draw these functions. The result has ``pde``, ``functions``
    (their number), ``relative_l2`` (mean), ``median``, ``worst``, ``components`` (mean of each), ``errors`` (per
    function and component), and ``seconds`` and ``reference_seconds`` (time of prediction and of the reference solver).
    The attachment ``.png`` shows the best, the median and the worst function.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        model = task.model.eval()
        coefficients = task.test_coefficients(NUM_FUNCTIONS)
        began = time.perf_counter()
        reference = task.pde.solve(coefficients)
        solved = time.perf_counter()
        parts = np.array_split(coefficients, max(1, NUM_FUNCTIONS // BATCH_SIZE))
        predicted = np.concatenate([task.predict_solutions(model, part, request.device) for part in parts])
        prediction_seconds = time.perf_counter() - solved
        errors = task.errors(predicted, reference)
        per_function = errors.mean(1)
        values: dict[str, Any] = {
            "pde": dict(task.config.pde),
            "functions": NUM_FUNCTIONS,
            "relative_l2": float(per_function.mean()),
            "median": float(np.median(per_function)),
            "worst": float(per_function.max()),
            "components": {name: float(x) for name, x in zip(task.pde.components, errors.mean(0), strict=True)},
            "errors": [[float(x) for x in row] for row in errors],
            "seconds": prediction_seconds,
            "reference_seconds": solved - began,
        }

        def save_figure(file: BinaryIO) -> None:
            from ds4sci.tasks.evaluations.function_figures import save_figure as save

            order = np.argsort(per_function)
            chosen = [order[0], order[len(order) // 2], order[-1]]
            save(task.pde, coefficients, predicted, reference, per_function, chosen, file)

        return EvaluationResult(values, errors_table(values), attachments={".png": save_figure})

    return Evaluation(run)


def errors_table(values: dict[str, Any]) -> Table:
    """Return the errors as a table for the terminal: all components, then each."""
    table = Table(
        title=f"{values['pde']['name']}: relative L2, {values['functions']} unseen functions", title_justify="left"
    )
    for column in ("component", "mean", "median", "worst"):
        table.add_column(column, justify="left" if column == "component" else "right")
    table.add_row("all", *(f"{values[key]:.2%}" for key in ("relative_l2", "median", "worst")))
    if len(values["components"]) > 1:
        for number, (name, mean) in enumerate(values["components"].items()):
            own = [row[number] for row in values["errors"]]
            table.add_row(name, f"{mean:.2%}", f"{np.median(own):.2%}", f"{max(own):.2%}")
    return table
