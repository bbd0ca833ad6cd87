"""Figures of learnt solution operators: input function, reference solution, prediction and difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ds4sci.physics.pdes import Pde, grid_points

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NAMES = ("best", "median", "worst")


def save_figure(
    pde: Pde,
    coefficients: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    errors: np.ndarray,
    chosen: Sequence[int],
    file: BinaryIO,
) -> None:
    """Draw functions of ``pde`` as PNG into ``file``.

    For one component, a row for each of the ``chosen`` functions (best, median, worst). For several components, a row
    for each component of the median function.

    coefficients [m, k]; predicted, reference [m, …, c]; errors [m], relative L2 of each function
    """
    components = pde.components
    rows = [(number, name, 0) for number, name in zip(chosen, NAMES, strict=True)]
    if len(components) > 1:
        rows = [(chosen[1], NAMES[1], c) for c in range(len(components))]
    figure, axes = plt.subplots(len(rows), 4, figsize=(12.4, 2.7 * len(rows)), layout="constrained", squeeze=False)
    for row, (number, name, c) in zip(axes, rows, strict=True):
        _draw_input(figure, row[0], pde, coefficients[number])
        row[0].set_title(f"{name} of {len(errors)}: {errors[number]:.1%}", fontsize=10)
        component = components[c]
        true, ours = reference[number, ..., c], predicted[number, ..., c]
        if component in pde.up_to_constant:
            true, ours = true - true.mean(), ours - ours.mean()
        limit = float(np.quantile(np.abs(true), 0.998)) or 1.0
        shown = ((f"{component}, reference", true), (f"{component}, predicted", ours), ("difference", ours - true))
        for axis, (title, field) in zip(row[1:], shown, strict=True):
            _draw_field(figure, axis, pde, field, limit / 5 if title == "difference" else limit)
            axis.set_title(title, fontsize=10)
    figure.savefig(file, dpi=90, format="png")
    plt.close(figure)


def _draw_input(figure: Figure, axis: plt.Axes, pde: Pde, coefficients: np.ndarray) -> None:
    """Draw the input function and the sensors at which the network reads it."""
    sensors = pde.sensors
    if sensors.shape[1] == 1:
        x = np.linspace(0, 1, 201)
        axis.plot(x, pde.space.values(coefficients[None], x[:, None])[0], color="#0072b2")
        axis.plot(sensors[:, 0], pde.space.values(coefficients[None], sensors)[0], ".", ms=3, color="#0072b2")
        axis.grid(alpha=0.3)
        axis.set_xlabel("x")
        axis.set_ylabel("input function")
        return
    grid = (np.linspace(0, 1, 65),) * 2
    field = pde.space.values(coefficients[None], grid_points(grid)).reshape(65, 65)
    _draw_field(figure, axis, pde, field, float(np.abs(field).max()))
    axis.plot(sensors[:, 0], sensors[:, 1], ".", ms=2, color="black")


def _draw_field(figure: Figure, axis: plt.Axes, pde: Pde, field: np.ndarray, limit: float) -> None:
    """Draw a field on the unit square; time runs to the right, y upwards."""
    across = 1 if pde.names[1] == "t" else 0
    shown = axis.imshow(
        field if across else field.T, origin="lower", extent=(0, 1, 0, 1), cmap="RdBu_r", vmin=-limit, vmax=limit,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    axis.set_xlabel(pde.names[across])
    axis.set_ylabel(pde.names[1 - across])
    figure.colorbar(shown, ax=axis, pad=0.02)
