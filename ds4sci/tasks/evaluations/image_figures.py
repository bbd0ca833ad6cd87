"""Pictures of images and volumes with masks, of reconstructions, and of confusion matrices."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Literal

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = ("#f1f3f5", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442")
"""Background, then the Okabe–Ito palette."""
Kind = Literal["png", "svg"]


def middle(x: np.ndarray) -> np.ndarray:
    """Return the middle slice of a volume [z, y, x], seen with y upwards as its axes go; an image as it is."""
    return x[len(x) // 2][::-1] if x.ndim == 3 else x


def save_masks(
    inputs: np.ndarray, labels: np.ndarray, masks: Mapping[str, np.ndarray], classes: Sequence[str],
    names: Sequence[str], file: BinaryIO, *, kind: Kind,
) -> None:  # fmt: skip
    """Draw a row for each example: first channel, true classes, and those of each method; of volumes a middle slice.

    inputs [m, c, …]; labels [m, …], negative = not labelled; masks: method → [m, …]
    """
    colours = ListedColormap([COLOURS[i % len(COLOURS)] for i in range(len(classes))])
    columns = {"truth": np.where(labels < 0, 0, labels), **masks}
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci"}):
        figure = Figure(figsize=(2.3 * (1 + len(columns)), 2.4 * len(inputs) + 0.5), layout="constrained")
        axes = figure.subplots(len(inputs), 1 + len(columns), squeeze=False)
        for row, name in enumerate(names):
            axes[row, 0].imshow(middle(inputs[row, 0]), cmap="gray", interpolation="nearest")
            axes[row, 0].set_ylabel(name)
            for column, mask in enumerate(columns.values(), 1):
                axes[row, column].imshow(
                    middle(mask[row]), cmap=colours, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest"
                )
        for column, title in enumerate(["image", *columns]):
            axes[0, column].set_title(textwrap.fill(title, 20))
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        handles = [
            Patch(facecolor=COLOURS[i % len(COLOURS)], edgecolor="#7b8794", label=x) for i, x in enumerate(classes)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), frameon=False)
        _save(figure, file, kind)


def save_reconstructions(
    images: np.ndarray, visible: np.ndarray, reconstructed: np.ndarray, names: Sequence[str], file: BinaryIO, *,
    kind: Kind,
) -> None:  # fmt: skip
    """Draw a row for each example: image, visible patches, and these with the reconstruction of the others.

    All [m, c, …]; NaN in ``visible`` is hidden.
    """
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci"}):
        figure = Figure(figsize=(7.2, 2.4 * len(images)), layout="constrained")
        axes = figure.subplots(len(images), 3, squeeze=False)
        for row, name in enumerate(names):
            low, high = float(images[row, 0].min()), float(images[row, 0].max())
            for column, x in enumerate((images, visible, reconstructed)):
                axes[row, column].imshow(middle(x[row, 0]), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
                axes[row, column].set_facecolor("#cfe3f3")
                axes[row, column].set_xticks([])
                axes[row, column].set_yticks([])
            axes[row, 0].set_ylabel(name)
        for column, title in enumerate(("image", "visible patches", "reconstruction")):
            axes[0, column].set_title(title)
        _save(figure, file, kind)


def save_confusion(matrix: np.ndarray, classes: Sequence[str], file: BinaryIO, *, kind: Kind) -> None:
    """Draw a confusion matrix [label, class]."""
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci"}):
        figure = Figure(figsize=(1.5 + 0.8 * len(classes), 1.2 + 0.8 * len(classes)), layout="constrained")
        axis = figure.subplots()
        axis.imshow(matrix, cmap="Blues", vmin=0)
        for (row, column), count in np.ndenumerate(matrix):
            axis.text(column, row, str(count), ha="center", va="center", color="black")
        axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
        axis.set_yticks(range(len(classes)), classes)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("class")
        _save(figure, file, kind)


def _save(figure: Figure, file: BinaryIO, kind: Kind) -> None:
    figure.savefig(file, format=kind, dpi=90, metadata={"Date": None} if kind == "svg" else None)
