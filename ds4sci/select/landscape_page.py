"""Loss landscape of a run on its training data and on held-out data: measurement, JSON and a page with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ds4sci.data.sample_selection import SelectionConfig, WeightConfig, kept_samples, sample_weights
from ds4sci.files.atomic_files import replace_text
from ds4sci.files.json_values import to_plain
from ds4sci.inference.ranks import run_ranks
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.select import landscape
from ds4sci.tasks import SampleScoring
from ds4sci.tasks.build import default_kernels
from ds4sci.tasks.capabilities import Split
from ds4sci.train.distributed import DistributedContext

SPLITS: tuple[tuple[Split, str], ...] = (
    ("train", "training data, as selected and weighted"),
    ("valid", "held-out data"),
)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    checkpoints  of the run: best, latest, or steps
    samples      of each kind, evenly spaced over the set
    span         slices go from −span to span, in units of the weights
    points       of the 1-D slice
    grid         points of a side of the 2-D slice, which is that of the last checkpoint; 0: none
    iterations   most products of the power iteration
    """

    checkpoints: tuple[str, ...] = ("best",)
    samples: int = 64
    span: float = 0.5
    points: int = 21
    grid: int = 9
    iterations: int = 100


def measure(run: Path, plan: Plan, *, ranks: int = 1) -> dict[str, Any]:
    """Measure curvature and slices of each checkpoint on both kinds of data; the result has JSON values.

    ranks  processes of this machine that share the samples, each with a copy of the model

    Raises ValueError for a task whose samples cannot be scored.
    """
    surfaces = _surfaces(None, run, plan) if ranks == 1 else run_ranks(_surfaces, ranks, run, plan)[0]
    return {"run": str(run), "surfaces": surfaces, "machine": provenance.describe(), "commit": provenance.commit()}


def _surfaces(context: DistributedContext | None, run: Path, plan: Plan) -> list[dict[str, Any]]:
    """Figures of each checkpoint and kind of data, on every rank."""
    group = SINGLE_RANK if context is None else SequenceGroup(context.rank, context.world_size)  # of the whole world
    found: list[dict[str, Any]] = []
    places = np.linspace(-plan.span, plan.span, plan.points).tolist()
    sides = np.linspace(-plan.span, plan.span, plan.grid).tolist() if plan.grid else []
    for number, which in enumerate(plan.checkpoints):
        for split, label in SPLITS:
            trained = TrainedRun.load(run, which)
            surface = surface_of(trained, split, plan.samples, group)
            with default_kernels(trained.config):
                one = {
                    "step": trained.step, "data": split, "label": label, "samples": surface.samples,
                    "loss": surface.loss(surface.start),
                    **asdict(landscape.curvature(surface, iterations=plan.iterations)),
                    "line": {"places": places, "loss": landscape.line(surface, places)},
                }  # fmt: skip
                if sides and number == len(plan.checkpoints) - 1:
                    one["plane"] = {"places": sides, "loss": landscape.plane(surface, sides)}
            found.append(one)
    return found


def surface_of(
    trained: TrainedRun, split: Split, count: int, ranks: SequenceGroup = SINGLE_RANK
) -> landscape.LossSurface:
    """Return the loss on ``count`` evenly spaced samples of a split, which ``ranks`` share.

    Of ``train``, they are samples that the run selects, with their weights.

    Raises ValueError for a task whose samples cannot be scored.
    """
    task: Any = trained.task
    if not isinstance(task, SampleScoring):
        raise trained.lacks("show its landscape", "sample_names, sample_batches and sample_error")
    if split == "train":
        names, keys = task.sample_names(), getattr(trained.config.settings, "data", None)
        selection: SelectionConfig | None = getattr(keys, "selection", None)
        weights: WeightConfig | None = getattr(keys, "weights", None)
        kept = np.arange(len(names)) if selection is None else kept_samples(selection, names)
        factors = np.ones(len(names)) if weights is None else sample_weights(weights, names, kept)
        wanted = set(_spaced(kept, count).tolist())
        found = [(number, batch) for number, batch in task.sample_batches(split) if number in wanted]
        own = [float(factors[number]) for number, _ in found]
        return landscape.LossSurface(task, [batch for _, batch in found], trained.device, own, ranks)
    found = list(task.sample_batches(split))
    held_out = _spaced(np.unique([number for number, _ in found]), count)
    batches = [batch for number, batch in found if number in held_out]
    return landscape.LossSurface(task, batches, trained.device, ranks=ranks)


def _spaced(numbers: np.ndarray, count: int) -> np.ndarray:
    """``count`` of ``numbers``, evenly spaced."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int))]


def write(measured: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``landscape.json`` and ``landscape.html`` into ``folder``, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "landscape.json", folder / "landscape.html"
    replace_text(data, json.dumps(to_plain(measured), indent=1) + "\n")
    surfaces = measured["surfaces"]
    rows = [
        [
            f"{one['label']}, step {one['step']:,}", f"{one['samples']}", f"{one['loss']:.4g}", f"{one['largest']:.4g}",
            f"{one['residual']:.1g}", f"{one['trace']:.4g} ± {one['trace_error']:.2g}",
        ]
        for one in surfaces
    ]  # fmt: skip
    header = ["data", "samples", "loss", "λ_max", "‖Hv − λv‖ / |λ|", "trace"]
    note = html.paragraph(
        "λ_max: largest eigenvalue of the Hessian of the loss, by power iteration on products in fp64. The trace is "
        "Hutchinson's estimate with its standard error. A small λ_max is a flat minimum, in which larger steps and "
        "larger batches remain stable."
    )
    body = [html.section("Curvature", html.table(header, rows), note)]
    picture = figures.svg(draw_lines, surfaces, size=(11, 3.8), panels=(1, 2))
    caption = (
        "Loss along a random direction whose filters have the norms of those of the weights (arXiv 1712.09913); 0 is "
        "the trained model."
    )
    body.append(
        html.section("Slices", html.figure(picture, "Loss along a line through the weights", caption, wide=True))
    )
    planes = [one for one in surfaces if "plane" in one]
    if planes:
        picture = figures.svg(draw_planes, planes, size=(11, 4.6), panels=(1, len(planes)))
        body.append(html.figure(picture, "Contours of the loss in a plane through the weights", wide=True))
    header_text = f"<h1>Loss landscape of {html.escape(Path(measured['run']).name)}</h1>"
    footer = "Created by <code>ds4sci select landscape</code>. Self-contained: no network access, no scripts."
    replace_text(page, html.page("Loss landscape · ds4sci", header_text, body, footer))
    return [data, page]


def draw_lines(axes: Sequence[Axes], surfaces: Sequence[dict[str, Any]]) -> None:
    """Left: training data, right: held-out data; a curve for each checkpoint."""
    for panel, (split, label) in zip(axes, SPLITS, strict=True):
        own = [one for one in surfaces if one["data"] == split]
        for number, one in enumerate(own):
            colour = figures.SERIES[number % len(figures.SERIES)]
            panel.plot(one["line"]["places"], one["line"]["loss"], color=colour, label=f"step {one['step']:,}")
        panel.set(title=label[0].upper() + label[1:], xlabel="distance along the direction", ylabel="loss")
        if len(own) > 1:
            panel.legend()


def draw_planes(axes: Sequence[Axes], surfaces: Sequence[dict[str, Any]]) -> None:
    """Contours of each surface; the trained model is marked."""
    for panel, one in zip(axes, surfaces, strict=True):
        places, loss = one["plane"]["places"], np.array(one["plane"]["loss"])
        lowest = loss.min()
        levels = (
            lowest + (min(loss.max(), lowest + 4 * (np.median(loss) - lowest)) - lowest) * np.linspace(0, 1, 13) ** 2
        )
        lines = panel.contour(places, places, loss.T, levels=np.unique(levels), cmap="viridis")
        panel.clabel(lines, fontsize=7, fmt="%.3g")
        panel.plot(0, 0, "o", color=figures.RED, markersize=5)
        panel.set(title=f"{one['label'][0].upper() + one['label'][1:]}, step {one['step']:,}", aspect="equal")
