"""Figures of surrogates: scalars, fields, and nominal against empirical coverage of ensembles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ds4sci.tasks.evaluations.volume_figures import COLOURS, STYLE, save_scatter

__all__ = ["save_coverage", "save_fields", "save_scatter"]


def save_fields(true: np.ndarray, predicted: np.ndarray, name: str, file: BinaryIO, *, kind: str) -> None:
    """Draw fields [k, h, w] in rows: true, predicted, and their difference on a scale of its own."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.6 * len(true) + 0.3), layout="constrained")
        axes = figure.subplots(len(true), 3, squeeze=False)
        for row, own, found in zip(axes, true, predicted, strict=True):
            low, high = own.min(), own.max()
            difference = found - own
            most = max(float(np.abs(difference).max()), 1e-12)
            panels = ((own, low, high, "magma"), (found, low, high, "magma"), (difference, -most, most, "RdBu_r"))
            for axis, (values, least, largest, colours) in zip(row, panels, strict=True):
                image = axis.imshow(
                    values, vmin=least, vmax=largest, cmap=colours, origin="lower", interpolation="nearest"
                )
                axis.set(xticks=[], yticks=[])
                figure.colorbar(image, ax=axis, shrink=0.85)
        for axis, title in zip(axes[0], (f"{name}, true", "predicted", "difference"), strict=True):
            axis.set_title(title)
        _save(figure, file, kind)


def save_coverage(
    levels: np.ndarray, empirical: Mapping[str, np.ndarray], file: BinaryIO, *, kind: str, title: str = ""
) -> None:
    """Draw the empirical coverage of central intervals against their nominal probability ``levels`` [l].

    empirical  name → [l]
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#7b8794", linewidth=1, label="calibrated")
        for place, (name, values) in enumerate(empirical.items()):
            axis.plot(levels, values, marker="o", markersize=3, color=COLOURS[place % len(COLOURS)], label=name)
        axis.set(xlabel="nominal coverage", ylabel="empirical coverage", xlim=(0, 1), ylim=(0, 1), title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        _save(figure, file, kind)


def _save(figure: Figure, file: BinaryIO, kind: str) -> None:
    figure.savefig(file, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
