"""Figures of the report as SVG text. They use matplotlib without pyplot, so there is no window and no global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ds4sci.metrics import METRICS

INK, GREY, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
SERIES = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "#8c6d31", "#5c4d9a")
"""Okabe–Ito palette, which is distinguishable with colour-vision deficiency."""

CLASSES = {"α": (RED, "o"), "β": (BLUE, "s"), "mixed": (GREEN, "^"), "few": (GREY, "D")}
"""Colour and marker of each secondary-structure class."""

STYLE = {
    "font.family": "sans-serif", "font.size": 10, "axes.edgecolor": GREY, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
    "axes.axisbelow": True, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "legend.frameon": False, "legend.fontsize": 9, "svg.fonttype": "none", "svg.hashsalt": "ds4sci",
}  # fmt: skip


def svg(
    draw: Any, *arguments: Any, size: tuple[float, float], panels: tuple[int, int] = (1, 1),
    heights: Sequence[float] | None = None,
) -> str:  # fmt: skip
    """SVG of ``size`` inches, drawn by ``draw(axes, *arguments)``. Deterministic.

    heights  relative heights of the rows of panels
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(*panels, squeeze=False, height_ratios=heights).ravel()
        draw(axes, *arguments)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
    return buffer.getvalue()


def metrics_of(evaluations: list[dict[str, Any]]) -> list[str]:
    """Names of the metrics in a task's evaluations, without bookkeeping fields."""
    bookkeeping = {"kind", "step", "seconds", "elapsed", "score", "tokens"}
    return list(dict.fromkeys(key for line in evaluations for key in line if key not in bookkeeping))


def learning_curves(
    axes: Sequence[Axes], train: list[dict[str, Any]], evaluations: list[dict[str, Any]], baselines: dict[str, float]
) -> None:
    """Left: loss and its terms by step. Right: held-out lDDT-Cα and TM-score, or the metrics of another task.

    ``baselines`` (label → lDDT-Cα) are horizontal lines.
    """
    left, right = axes
    steps = np.array([line["step"] for line in train], dtype=float)
    columns: dict[str, np.ndarray] = {"total": np.array([_number(line.get("loss")) for line in train])}
    # terms can start and end with the phases of a run; metrics logged among them belong to the right panel
    for name in dict.fromkeys(name for line in train for name in line.get("loss_terms", {}) if name not in METRICS):
        columns[name] = np.array([_number(line.get("loss_terms", {}).get(name)) for line in train])
    size = {name: np.nanmax(np.abs(values), initial=0) for name, values in columns.items()}
    # a term that is zero up to rounding would extend the axis by ten decades
    drawn = {name: values for name, values in columns.items() if size[name] > 1e-8 * size["total"]}
    smooth = max(1, len(steps) // 40)
    for place, (name, values) in enumerate(drawn.items()):
        colour = INK if name == "total" else SERIES[(place - 1) % len(SERIES)]
        style = "-" if place <= len(SERIES) else "--"
        left.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
        mean = np.where(np.isfinite(values), smoothed(values, smooth), np.nan)
        width = 2 if name == "total" else 1.3
        left.plot(steps, mean, style, color=colour, linewidth=width, label=name.replace("_", " "))
    left.set(xlabel="step", title="Training loss and its unweighted terms")
    if np.nanmin(columns["total"]) > 0:
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
    left.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    shown = [("lddt_ca", "lDDT-Cα", BLUE, "o"), ("tm_score", "TM-score", RED, "s")]
    fold = not evaluations or any("lddt_ca" in line for line in evaluations)
    if not fold:
        others = [key for key in metrics_of(evaluations) if key != "perplexity"]
        shown = [(key, key.replace("_", " "), SERIES[i % len(SERIES)], "o") for i, key in enumerate(others)]
    for key, label, colour, marker in shown:
        points = [(line["step"], _number(line[key])) for line in evaluations if line.get(key) is not None]
        if points:
            right.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label, clip_on=False
            )
    for (label, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
        right.axhline(value, color=GREY, linestyle=style, linewidth=1.2, label=f"lDDT-Cα of {label}")
    right.set(xlabel="step", title=f"Held-out {'chains' if fold else 'data'} during training", ylim=(0, None))
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="lower right")
    else:
        right.text(0.5, 0.5, "no evaluation yet", transform=right.transAxes, ha="center", color=GREY)
    seconds = np.array([_number(line.get("seconds")) for line in train])
    for panel in (left, right):
        panel.set_xlim(0, float(steps.max()))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(steps) > 1 and np.isfinite(seconds).all() and (np.diff(seconds) > 0).all():
            _minutes_axis(panel, steps, seconds)


def _minutes_axis(panel: Axes, steps: np.ndarray, seconds: np.ndarray) -> None:
    """Axis on top with the minutes at which the steps finished."""
    known = np.concatenate([[0.0], seconds]) / 60
    marks = [mark for mark in MaxNLocator(5).tick_values(0, float(known[-1])) if 0 <= mark <= known[-1]]
    top = panel.twiny()
    top.set_xlim(panel.get_xlim())
    top.set_xticks(np.interp(marks, known, np.concatenate([[0.0], steps])), [f"{mark:g}" for mark in marks])
    top.set_xlabel("minutes", fontsize=9)
    top.spines["top"].set_visible(True)
    top.grid(False)


def by_length(
    axes: Sequence[Axes], rows: list[dict[str, Any]], classes: dict[str, str], baseline: dict[str, float]
) -> None:
    """lDDT-Cα of each chain by length and class, the running mean, and the running mean of a baseline."""
    (panel,) = axes
    rows = [row for row in rows if row.get("lddt_ca") is not None]
    for name, (colour, marker) in CLASSES.items():
        own = [(row["length"], row["lddt_ca"]) for row in rows if classes.get(row["id"], "few") == name]
        if own:
            label = f"{name} ({len(own)})" if classes else f"chains ({len(own)})"
            x, y = np.array(own).T
            panel.scatter(x, y, s=26, color=colour, marker=marker, alpha=0.75, linewidths=0, label=label)
    panel.plot(
        *_running([(row["length"], row["lddt_ca"]) for row in rows]), color=INK, linewidth=2, label="running mean"
    )
    points = [(row["length"], baseline[row["id"]]) for row in rows if row["id"] in baseline]
    if points:
        panel.plot(*_running(points), color=GREY, linestyle="--", label="running mean, true-DSSP baseline")
    panel.set(xlabel="chain length (residues)", ylabel="lDDT-Cα", ylim=(0, 1))
    panel.legend(loc="upper right", ncols=2)


def calibration(axes: Sequence[Axes], plddt: np.ndarray, lddt: np.ndarray, chains: np.ndarray) -> None:
    """Left: measured against predicted lDDT of residues, with the mean of each bin. Right: the same for chains."""
    left, right = axes
    counts, x_edges, y_edges = np.histogram2d(plddt, lddt, bins=40, range=((0, 100), (0, 1)))
    mesh = left.pcolormesh(
        x_edges, y_edges, np.where(counts > 0, counts, np.nan).T, cmap="Blues", norm=LogNorm(vmin=0.5)
    )
    mesh.set_rasterized(True)
    edges = np.arange(0, 101, 10)
    place = np.clip(np.digitize(plddt, edges) - 1, 0, 9)
    filled = [b for b in range(10) if (place == b).sum() >= 20]
    means = [(plddt[place == b].mean(), lddt[place == b].mean()) for b in filled]
    if means:
        left.plot(*zip(*means, strict=True), "o-", color=RED, markersize=5, label="mean of each bin")
    left.set(xlabel="pLDDT of the residue", ylabel="lDDT-Cα of the residue", title="Residues")
    right.scatter(chains[:, 0], chains[:, 1], s=22, color=BLUE, alpha=0.7, linewidths=0)
    right.set(xlabel="mean pLDDT of the chain", ylabel="lDDT-Cα of the chain", title="Chains")
    for panel in (left, right):
        panel.plot([0, 100], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
        panel.set(xlim=(0, 100), ylim=(0, 1))
        panel.legend(loc="upper left")


def ramachandran(axes: Sequence[Axes], predicted: np.ndarray, true: np.ndarray) -> None:
    """Ramachandran plots: density of φ and ψ of the prediction and the true structures, on the same bins."""
    colours = ListedColormap(["#deebf7", "#9ecae1", "#4292c6", "#08519c", "#08306b"])
    for panel, angles, title in zip(axes, (predicted, true), ("predicted", "true"), strict=True):
        angles = angles[np.isfinite(angles).all(axis=1)]
        counts, edges, _ = np.histogram2d(angles[:, 0], angles[:, 1], bins=60, range=((-180, 180), (-180, 180)))
        share = np.where(counts > 0, counts / max(len(angles), 1), np.nan)
        mesh = panel.pcolormesh(edges, edges, share.T, cmap=colours, norm=LogNorm(vmin=5e-5, vmax=2e-2))
        mesh.set_rasterized(True)
        panel.set(title=title, xlabel="φ (°)", aspect="equal", xlim=(-180, 180), ylim=(-180, 180))
        panel.set_xticks([-180, -90, 0, 90, 180])
        panel.set_yticks([-180, -90, 0, 90, 180])
    axes[0].set_ylabel("ψ (°)")
    axes[1].set_yticklabels([])


def bond_lengths(axes: Sequence[Axes], predicted: np.ndarray, true: np.ndarray) -> None:
    """Histogram of the distances between neighbouring Cα atoms, predicted and true, with the accepted range."""
    (panel,) = axes
    bins = np.arange(2.5, 5.01, 0.05).tolist()
    panel.axvspan(3.5, 4.1, color=FAINT, zorder=0, label="3.8 ± 0.3 Å")
    for values, colour, label in ((true, GREY, "true"), (predicted, BLUE, "predicted")):
        share = np.full(len(values), 1 / max(len(values), 1))
        panel.hist(
            np.clip(values, 2.5, 5), bins=bins, weights=share, histtype="step", linewidth=1.8, color=colour, label=label
        )
    panel.set(
        xlabel="Cα–Cα distance of neighbours (Å), clipped to the range", ylabel="fraction of bonds", xlim=(2.5, 5)
    )
    panel.set_title("Bond lengths")
    panel.legend(loc="upper right")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` values before and after each value. Ignores NaN."""
    good = np.isfinite(values)
    kernel = np.ones(2 * width + 1)
    total, count = (np.convolve(np.pad(x, width), kernel, "valid") for x in (np.where(good, values, 0.0), good * 1.0))
    return total / np.maximum(count, 1)


def _running(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian-weighted running mean at 80 positions; the standard deviation is 1/15 of the range of x."""
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    width = max(float(np.ptp(x)) / 15, 1e-6)
    places = np.linspace(x.min(), x.max(), 80)
    weight = np.exp(-0.5 * ((places[:, None] - x[None]) / width) ** 2)
    return places, weight @ y / weight.sum(axis=1)
