"""Figures of regression from volumes: slices of a volume, and predicted against true targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00")
STYLE = {"svg.hashsalt": "ds4sci", "svg.fonttype": "none", "font.size": 10}


def save_scatter(
    predictions: Mapping[str, np.ndarray], true: np.ndarray, names: Sequence[str], file: BinaryIO, *, kind: str
) -> None:
    """Draw predicted against true targets, a panel for each target, as ``kind`` (png or svg) into ``file``.

    predictions  method → [m, t]; the first method is drawn on top
    true         [m, t]
    """
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.1 * columns, 3.3 * rows), layout="constrained")
        for number, (axis, name) in enumerate(zip(figure.subplots(rows, columns, squeeze=False).flat, names)):  # noqa: B905
            low, high = true[:, number].min(), true[:, number].max()
            axis.plot([low, high], [low, high], color="#7b8794", linewidth=1)
            for place, (method, values) in reversed(list(enumerate(predictions.items()))):
                error = np.abs(values[:, number] - true[:, number]).mean()
                colour = COLOURS[place % len(COLOURS)]
                label = f"{method}: {error:.3f}"
                axis.plot(true[:, number], values[:, number], ".", markersize=4, alpha=0.6, color=colour, label=label)
            axis.set(title=name, xlabel="true", ylabel="predicted" if number % columns == 0 else "")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, loc="upper left", title="mean absolute error", title_fontsize=7)
        _save(figure, file, kind)


def save_slices(volume: np.ndarray, channels: Sequence[str], file: BinaryIO, *, kind: str) -> None:
    """Draw the central slice of each channel of ``volume`` [c, n, n, n] on one colour scale into ``file``."""
    slices = volume[:, volume.shape[1] // 2]
    low, high = np.quantile(slices, [0.01, 0.99])
    with rc_context(STYLE):
        figure = Figure(figsize=(2.9 * len(channels) + 0.5, 3.1), layout="constrained")
        axes = figure.subplots(1, len(channels), squeeze=False)[0]
        for axis, name, values in zip(axes, channels, slices, strict=True):
            image = axis.imshow(values, cmap="magma", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axis.set(title=name, xticks=[], yticks=[])
        figure.colorbar(image, ax=list(axes), shrink=0.8)
        _save(figure, file, kind)


def _save(figure: Figure, file: BinaryIO, kind: str) -> None:
    figure.savefig(file, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
