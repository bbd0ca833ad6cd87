"""Pictures of learnt operators: the function, the reference solution, the prediction and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ds4sci.physics.pdes import grid_points
from ds4sci.tasks.neural_operator import OperatorTask

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NAMES = ("best", "median", "worst")


def save_picture(
    task: OperatorTask,
    coefficients: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    errors: np.ndarray,
    chosen: Sequence[int],
    out: Path,
) -> Path:
    """Drawn beside ``out`` as PNG; the picture's path.

    A row for each of the ``chosen`` functions (best, median, worst); of several components a row each, of the median
    function."""
    components = task.pde.components
    rows = [(number, name, 0) for number, name in zip(chosen, NAMES, strict=True)]
    if len(components) > 1:
        rows = [(chosen[1], NAMES[1], c) for c in range(len(components))]
    figure, axes = plt.subplots(len(rows), 4, figsize=(12.4, 2.7 * len(rows)), layout="constrained", squeeze=False)
    for row, (number, name, c) in zip(axes, rows, strict=True):
        _input(figure, row[0], task, coefficients[number])
        row[0].set_title(f"{name} of {len(errors)}: {errors[number]:.1%}", fontsize=10)
        component = components[c]
        true, ours = reference[number, ..., c], predicted[number, ..., c]
        if component in task.pde.up_to_constant:
            true, ours = true - true.mean(), ours - ours.mean()
        reach = float(np.quantile(np.abs(true), 0.998)) or 1.0
        shown = ((f"{component}, reference", true), (f"{component}, predicted", ours), ("difference", ours - true))
        for axis, (title, field) in zip(row[1:], shown, strict=True):
            _field(figure, axis, task, field, reach / 5 if title == "difference" else reach)
            axis.set_title(title, fontsize=10)
    picture = out.with_suffix(".png")
    figure.savefig(picture, dpi=90)
    plt.close(figure)
    return picture


def _input(figure: Figure, axis: plt.Axes, task: OperatorTask, coefficients: np.ndarray) -> None:
    sensors = task.pde.sensors
    if sensors.shape[1] == 1:
        x = np.linspace(0, 1, 201)
        axis.plot(x, task.pde.space.values(coefficients[None], x[:, None])[0], color="#0072b2")
        axis.plot(sensors[:, 0], task.pde.space.values(coefficients[None], sensors)[0], ".", ms=3, color="#0072b2")
        axis.grid(alpha=0.3)
        axis.set_xlabel("x")
        axis.set_ylabel("given function")
        return
    grid = (np.linspace(0, 1, 65),) * 2
    field = task.pde.space.values(coefficients[None], grid_points(grid)).reshape(65, 65)
    _field(figure, axis, task, field, float(np.abs(field).max()))
    axis.plot(sensors[:, 0], sensors[:, 1], ".", ms=2, color="black")


def _field(figure: Figure, axis: plt.Axes, task: OperatorTask, field: np.ndarray, limit: float) -> None:
    """A field over the unit square, the time to the right or y upwards."""
    across = 1 if task.pde.names[1] == "t" else 0
    shown = axis.imshow(
        field if across else field.T, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", vmin=-limit, vmax=limit,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    axis.set_xlabel(task.pde.names[across])
    axis.set_ylabel(task.pde.names[1 - across])
    figure.colorbar(shown, ax=axis, pad=0.02)
