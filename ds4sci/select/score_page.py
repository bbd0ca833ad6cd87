"""Page of a file of scores: distributions, how scores agree, and the samples at both ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from ds4sci.data.score_file import ScoreFile
from ds4sci.files.atomic_files import replace_text
from ds4sci.report import figures
from ds4sci.report import page as html

SHOWN = 15
"""Samples of each end."""


def write_page(scores: ScoreFile, path: Path) -> Path:
    """Write the page of ``scores`` to ``path``, and return it. Samples without a finite score are counted.

    Raises ValueError if no sample has one.
    """
    finite = np.all([np.isfinite(values) for values in scores.scores.values()], axis=0)
    if not scores.scores or not finite.any():
        raise ValueError(f"{scores.path}: no scores to show")
    lacking, whole = int((~finite).sum()), scores
    chosen = {name: values[finite].astype(float) for name, values in sorted(scores.scores.items())}
    scores = ScoreFile(whole.path, whole.sample[finite], whole.name[finite], chosen, whole.about)
    columns, body = chosen, []
    if lacking:
        body.append(
            html.missing(f"{lacking:,} of {len(whole.sample):,} samples have no finite score, and are left out here.")
        )
    for name, values in columns.items():
        picture = figures.svg(draw, name, values, size=(11, 3.4), panels=(1, 2))
        alt = f"{name}: median {np.median(values):.3g}, {values.min():.3g} to {values.max():.3g}"
        caption = "Left: number of samples. Right: all samples in order of the score; grey lines mark every tenth."
        order = np.argsort(values, kind="stable")
        ends = html.pair(
            _table("lowest", scores, values, order[:SHOWN]), _table("highest", scores, values, order[::-1][:SHOWN])
        )
        body.append(html.section(name, html.figure(picture, alt, caption, wide=True), ends))
    if len(columns) > 1:
        rows = [
            [one, *(f"{spearmanr(columns[one], columns[other]).statistic:.2f}" for other in columns)] for one in columns
        ]
        note = html.paragraph("Spearman's rank correlation: 1 means that two scores order the samples alike.")
        body.append(html.section("Agreement", html.table(["", *columns], rows), note))
    origin = ", ".join(str(run) for run in scores.about.get("runs", [])) or "unknown runs"
    header = (
        f"<h1>{html.escape(scores.path.name)}</h1><p>{len(scores.sample):,} samples · scored by "
        f"{html.escape(origin)}</p>"
    )
    footer = "Created by <code>ds4sci select report</code>. Self-contained: no network access, no scripts."
    replace_text(path, html.page(f"{scores.path.name} · ds4sci", header, body, footer))
    return path


def _table(title: str, scores: ScoreFile, values: np.ndarray, chosen: np.ndarray) -> str:
    rows = [[html.escape(str(scores.name[i])), f"{int(scores.sample[i]):,}", f"{values[i]:.4g}"] for i in chosen]
    return html.table([f"{title} scores", "sample", "score"], rows)


def draw(axes: Sequence[Axes], name: str, values: np.ndarray) -> None:
    """Left: histogram. Right: sorted values."""
    left, right = axes
    left.hist(values, bins=min(60, max(10, len(values) // 10)), color=figures.BLUE)
    left.set(title=f"Distribution of {name}", xlabel=name, ylabel="samples")
    fraction = (np.arange(len(values)) + 0.5) / len(values)
    right.plot(fraction, np.sort(values), color=figures.BLUE, linewidth=2)
    for tenth in range(1, 10):
        right.axvline(tenth / 10, color=figures.FAINT, linewidth=0.8)
    right.set(title="Sorted", xlabel="fraction of the samples", ylabel=name, xlim=(0, 1))
