"""Maps of fields on the sphere with the classes of their points."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

COLOURS = ("#f1f3f5", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
"""Background, then the Okabe–Ito palette."""
EXTENT = (0, 360, -90, 90)
ARROWS = 24
"""Arrows along the circle of longitudes."""


def save_maps(
    inputs: np.ndarray,
    labels: np.ndarray,
    masks: Mapping[str, np.ndarray],
    classes: Sequence[str],
    channels: Sequence[str],
    names: Sequence[str],
    file: BinaryIO,
    *,
    kind: Literal["png", "svg"],
) -> None:
    """Draw a column for each example into ``file``: the input, the true classes, and those of each method.

    inputs [m, c, h, w]; labels [m, h', w']; masks: method → [m, h', w']

    The input is shown as speed with arrows if the channels are ``u`` and ``v``, else by its first channel.
    """
    maps = {"truth": labels, **masks}
    count, rows = len(inputs), 1 + len(maps)
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci"}):
        figure = Figure(figsize=(4.0 * count + 0.6, 2.05 * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, count, squeeze=False, sharex=True, sharey=True)
        colours = ListedColormap(COLOURS[: len(classes)])
        for column in range(count):
            shown = _draw_input(axes[0, column], inputs, column, channels)
            axes[0, column].set_title(names[column], loc="left", fontweight="bold")
            for row, mask in enumerate(maps.values(), 1):
                axes[row, column].imshow(
                    mask[column], cmap=colours, vmin=-0.5, vmax=len(classes) - 0.5, origin="lower", extent=EXTENT,
                    interpolation="nearest", aspect="auto",
                )  # fmt: skip
            axes[-1, column].set_xlabel("column of the grid, degrees")
            axes[-1, column].set_xticks(range(0, 361, 90))
        for row, name in enumerate(["input", *maps]):
            axes[row, 0].set_ylabel(textwrap.fill(name, 18))
            axes[row, 0].set_yticks(range(-90, 91, 45))
        speed = tuple(channels[:2]) == ("u", "v")
        figure.colorbar(shown, ax=list(axes[0]), label="wind, m/s" if speed else channels[0], pad=0.01)
        figure.legend(
            handles=[Patch(facecolor=COLOURS[i], edgecolor="#7b8794", label=name) for i, name in enumerate(classes)],
            loc="outside lower center", ncols=len(classes), frameon=False,
        )  # fmt: skip
        figure.savefig(file, format=kind, dpi=90, metadata={"Date": None} if kind == "svg" else None)


def _draw_input(axis: matplotlib.axes.Axes, inputs: np.ndarray, number: int, channels: Sequence[str]) -> AxesImage:
    fields = inputs[number]
    if tuple(channels[:2]) != ("u", "v"):
        limits = np.quantile(inputs[:, 0], [0.002, 0.998])
        return axis.imshow(
            fields[0], origin="lower", extent=EXTENT, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto"
        )
    u, v = fields[:2].astype(float)
    largest = float(np.quantile(np.hypot(inputs[:, 0], inputs[:, 1]), 0.998))
    shown = axis.imshow(
        np.hypot(u, v), origin="lower", extent=EXTENT, cmap="viridis", vmin=0, vmax=largest, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    step = max(1, u.shape[1] // ARROWS)
    rows, columns = np.arange(step // 2, u.shape[0], step), np.arange(step // 2, u.shape[1], step)
    x, y = (columns + 0.5) * 360 / u.shape[1], np.linspace(-90, 90, u.shape[0])[rows]
    axis.quiver(x, y, u[np.ix_(rows, columns)], v[np.ix_(rows, columns)], color="white", scale=300, width=0.003)
    return shown
