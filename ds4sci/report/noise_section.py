"""Section of the report with the gradient noise scale of a run, and the batch size that it suggests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.run_artifacts import RunArtifacts

WINDOW = 1 / 10
"""Part of the logged lines over which both unknowns are averaged before they are divided."""


@dataclass(frozen=True)
class NoiseScale:
    """Noise scale of a run.

    steps    [n] steps of the lines of metrics
    squared  [n] |G₀|², averaged over neighbouring lines
    trace    [n] tr Σ, averaged alike
    samples  samples of a step of the run
    """

    steps: np.ndarray
    squared: np.ndarray
    trace: np.ndarray
    samples: int

    @property
    def batch(self) -> np.ndarray:
        """[n] samples, NaN where the mean gradient is lost in the noise."""
        valid = (self.squared > 0) & (self.trace > 0)
        return np.where(valid, self.trace / np.where(valid, self.squared, 1.0), np.nan)


def noise_scale(train: Sequence[dict[str, Any]]) -> NoiseScale | None:
    """Return the noise scale of logged lines; None if no line has it."""
    lines = [line for line in train if isinstance(line.get("gradient_noise"), dict)]
    if not lines:
        return None
    width = max(1, round(WINDOW * len(lines)))
    squared, trace = (
        figures.smoothed(np.array([float(line["gradient_noise"][key]) for line in lines]), width)
        for key in ("squared_norm", "trace")
    )
    steps = np.array([line["step"] for line in lines], dtype=float)
    return NoiseScale(steps, squared, trace, int(lines[-1]["gradient_noise"]["samples"]))


def noise_parts(artifacts: RunArtifacts) -> list[str]:
    """HTML of the section; empty if the run did not measure the noise."""
    scale = noise_scale(artifacts.train)
    if scale is None:
        return []
    half = scale.batch[len(scale.steps) // 2 :]
    found = float(np.nanmedian(half)) if np.isfinite(half).any() else None
    picture = figures.svg(draw, scale, size=(11, 3.8), panels=(1, 2))
    if found is None:
        text = (
            "In the second half of the run the mean gradient was smaller than its error: no batch size can be given. "
            "Run longer, or with more micro-batches per step."
        )
    else:
        text = (
            f"Median of the second half of the run: {found:,.0f} samples. A step with fewer samples is mostly noise, "
            "and twice the batch nearly halves the steps; with more, the steps hardly become better, and twice the "
            "batch costs twice the samples."
        )
        text += f" This run used {scale.samples:,} samples per step, {scale.samples / found:.2g} × that."
    alt = f"Noise scale over {int(scale.steps[-1]):,} steps: {'unknown' if found is None else f'{found:,.0f} samples'}"
    caption = (
        "Left: noise scale tr Σ / |G₀|², after averages of both over a tenth of the run to either side. Right: both. "
        "Source: McCandlish et al., arXiv 1812.06162."
    )
    return [html.paragraph(text), html.figure(picture, alt, caption, wide=True)]


def draw(axes: Sequence[Axes], scale: NoiseScale) -> None:
    """Left: noise scale and the batch size of the run. Right: squared norm of the gradient, and its variance."""
    left, right = axes
    left.plot(scale.steps, scale.batch, color=figures.BLUE, linewidth=2, label="noise scale")
    label = f"batch of the run ({scale.samples:,})"
    left.axhline(scale.samples, color=figures.GREY, linestyle="--", linewidth=1.2, label=label)
    left.set(title="Noise scale (samples)", xlabel="step")
    right.plot(scale.steps, scale.trace, color=figures.RED, linewidth=2, label="tr Σ of a sample's gradient")
    right.plot(scale.steps, scale.squared, color=figures.BLUE, linewidth=2, label="|G₀|²")
    right.set(title="Variance and square of the mean gradient", xlabel="step")
    for panel, values in ((left, scale.batch), (right, np.concatenate([scale.trace, scale.squared]))):
        if (values[np.isfinite(values)] > 0).any():
            panel.set_yscale("log")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.legend(loc="best")
