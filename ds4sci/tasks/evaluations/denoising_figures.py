"""Micrographs before and after denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ds4sci.metrics.images import psnr


def save_images(
    images: Sequence[dict[str, np.ndarray]], rows: Sequence[dict[str, Any]], file: BinaryIO,
    *, kind: Literal["png", "svg"],
) -> None:  # fmt: skip
    """Draw a row for each image into ``file``: relative intensities by method, then the error of the last but one.

    images  method → [n, n]; the last entry is the clean image, the one before that of the network
    rows    result of the evaluation for each image: ``id``, ``mse``, ``mse_nlm``

    All panels of a row have the grey scale of the clean image; counts beyond it appear black or white.
    """
    names = [*images[0], "network − clean"]
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci"}):
        figure = Figure(figsize=(2.3 * len(names) + 0.4, 2.45 * len(images)), layout="constrained")
        axes = figure.subplots(len(images), len(names), squeeze=False)
        for own, row, line in zip(images, rows, axes, strict=True):
            clean, network = own["clean"], list(own.values())[-2]
            low, high = np.quantile(clean, [0.002, 0.998])
            low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
            panels = [*own.values(), network - clean]
            for axis, name, image in zip(line, names, panels, strict=True):
                limits = (low, high) if name != names[-1] else (-(high - low) / 4, (high - low) / 4)
                colours = "gray" if name != names[-1] else "RdBu_r"
                axis.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
            line[0].set_ylabel(f"{row['id']}\ngain {psnr(row['mse'], 1) - psnr(row['mse_nlm'], 1):+.1f} dB")
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(name)
        figure.savefig(file, format=kind, dpi=90, metadata={"Date": None} if kind == "svg" else None)
