"""Figure of a timeline: stages of each rank as coloured bars, and CPU, memory, disk, network and GPU below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ds4sci.monitor.timeline import Curve, Timeline
from ds4sci.report.figures import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, RED, SERIES, SKY

STAGE_COLOURS = {"staging": PURPLE, "init": SKY, "train": BLUE, "eval": GREEN, "save": ORANGE, "run": FAINT}
SHOWN_RANKS = 16
"""Ranks whose stages are drawn."""
LINES = 8
"""Ranks with a line of their own; more are drawn as mean and range."""
BINS = 480
MANY_BARS = 2000

Panel = tuple[float, Callable[[Axes, Timeline, np.ndarray], None]]


def panels_of(timeline: Timeline) -> list[Panel]:
    """Relative height and drawing function of each panel. Panels without data are left out."""
    names = timeline.names()
    rows = min(len(timeline.ranks), SHOWN_RANKS) * (2 if any(s.on == "device" for s in timeline.stages) else 1)
    found: list[Panel] = [(0.35 + 0.24 * rows, _stages)]
    wanted = (("cores", _cpu), ("rss", _memory), ("read", _disk), ("gpu_memory", _gpu_memory), ("gpu_use", _gpu_use))
    found += [(1.0, draw) for name, draw in wanted if name in names]
    if any(name.startswith("net_") for name in names):
        found.append((1.0, _network))
    return found


def timeline_figure(axes: Sequence[Axes], timeline: Timeline) -> None:
    """Draw the panels of ``panels_of`` on one time axis."""
    edges = np.linspace(0, max(timeline.seconds, 1e-3), BINS + 1)
    in_minutes = timeline.seconds > 600
    unit = 60.0 if in_minutes else 1.0
    for axis, (_, draw) in zip(axes, panels_of(timeline), strict=True):
        draw(axis, timeline, edges / unit)
        axis.set_xlim(0, edges[-1] / unit)
        for start in timeline.starts[1:]:
            axis.axvline(start / unit, color=INK, linestyle=":", linewidth=1)
        if axis is not axes[-1]:
            axis.tick_params(labelbottom=False)
    for start in timeline.starts[1:]:
        axes[0].annotate(
            "resumed", (start / unit, 1), xycoords=("data", "axes fraction"), xytext=(3, 2),
            textcoords="offset points", fontsize=8, annotation_clip=False,
        )  # fmt: skip
    axes[-1].set_xlabel(f"{'minutes' if in_minutes else 'seconds'} since the start of the run")


def _stages(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    """Bars of the stages: a row per rank, and another for its GPU. Nested stages are drawn over those around them."""
    unit = _unit(timeline, edges)
    ranks = timeline.ranks[:SHOWN_RANKS]
    rows = [(rank, on) for rank in ranks for on in ("host", "device")]
    rows = [row for row in rows if row[1] == "host" or any((s.rank, s.on) == row for s in timeline.stages)]
    names = [name for name in STAGE_COLOURS if any(stage.name == name for stage in timeline.stages)]
    others = sorted({stage.name for stage in timeline.stages} - set(names))
    colours = STAGE_COLOURS | {name: SERIES[6 + i % 2] for i, name in enumerate(others)}
    shortest = (edges[-1] - edges[0]) / 1500  # thinner bars would be invisible
    for depth in range(max((stage.depth for stage in timeline.stages), default=-1) + 1):
        for place, row in enumerate(rows):
            own = [stage for stage in timeline.stages if (stage.rank, stage.on) == row and stage.depth == depth]
            bars = axis.broken_barh(
                [(stage.begin / unit, max(stage.seconds / unit, shortest)) for stage in own], (place - 0.38, 0.76),
                facecolors=[colours[stage.name] for stage in own], zorder=2 + depth,
            )  # fmt: skip
            bars.set_rasterized(len(timeline.stages) > MANY_BARS)
    axis.set_yticks(range(len(rows)), [f"rank {rank}" if on == "host" else "GPU" for rank, on in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(False)
    keys = [Patch(color=colours[name], label="other work" if name == "run" else name) for name in (*names, *others)]
    _legend(axis, keys)


def _cpu(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    _machine_area(axis, timeline, edges, "machine_cores", "machine")
    _lines_of_ranks(axis, timeline, edges, "cores", 1.0)
    _finish(axis, "CPU (cores)")


def _memory(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    _lines_of_ranks(axis, timeline, edges, "rss", 1e9)
    for values in _binned(timeline, edges, "available")[:1]:
        least = float(np.nanmin(values)) / 1e9
        if least < 2 * axis.get_ylim()[1]:
            axis.stairs(
                values / 1e9, edges, color=GREY, linestyle="--", linewidth=1.2, label="available", baseline=None
            )
        else:  # a line far above the others would flatten them
            axis.plot([], [], linestyle="none", label=f"available: ≥ {least:.1f} GB")
    _finish(axis, "memory (GB)")


def _disk(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    for name, label, colour in (("read", "read", BLUE), ("written", "written", RED)):
        _machine_area(axis, timeline, edges, f"disk_{name}", f"{label}, machine", 1e6, colour)
        _sum_of_ranks(axis, timeline, edges, [name], label, colour)
    _finish(axis, "disk (MB/s)")


def _network(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    names = [name for name in timeline.names() if name.startswith("net_")]
    for place, interface in enumerate(dict.fromkeys(name[4:].rpartition("_")[0] for name in names)):
        colour = SERIES[place % len(SERIES)]
        _sum_of_ranks(axis, timeline, edges, [f"net_{interface}_sent"], f"{interface}, sent", colour)
        if interface != "lo":  # there, what is sent is also received
            received = [f"net_{interface}_received"]
            _sum_of_ranks(axis, timeline, edges, received, f"{interface}, received", colour, "--")
    _finish(axis, "network (MB/s)")


def _gpu_memory(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    _lines_of_ranks(axis, timeline, edges, "gpu_memory", 1e9)
    _finish(axis, "GPU memory (GB)")


def _gpu_use(axis: Axes, timeline: Timeline, edges: np.ndarray) -> None:
    _lines_of_ranks(axis, timeline, edges, "gpu_use", 0.01)
    _finish(axis, "GPU use (%)")


def _lines_of_ranks(axis: Axes, timeline: Timeline, edges: np.ndarray, name: str, unit: float) -> None:
    """A line per rank, or mean and range of many ranks."""
    ranks = [rank for rank in timeline.ranks if (rank, name) in timeline.curves]
    values = [one / unit for one in _binned(timeline, edges, name)]
    if len(values) <= LINES:
        for rank, one in zip(ranks, values, strict=True):
            label = f"rank {rank}" if len(values) > 1 else "process"
            axis.stairs(one, edges, color=SERIES[rank % len(SERIES)], linewidth=1.4, label=label, baseline=None)
        return
    stacked = np.ma.masked_invalid(np.stack(values))
    low, high = stacked.min(axis=0).filled(np.nan), stacked.max(axis=0).filled(np.nan)
    axis.stairs(high, edges, baseline=low, fill=True, color=BLUE, alpha=0.25, label=f"range of {len(values)} ranks")
    axis.stairs(stacked.mean(axis=0).filled(np.nan), edges, color=BLUE, linewidth=1.4, label="mean", baseline=None)


def _sum_of_ranks(
    axis: Axes, timeline: Timeline, edges: np.ndarray, names: Iterable[str], label: str, colour: str, style: str = "-"
) -> None:
    """Line of the sum of curves over the ranks, in MB/s."""
    values = [one for name in names for one in _binned(timeline, edges, name)]
    if values:
        total = np.ma.masked_invalid(np.stack(values)).sum(axis=0).filled(np.nan)
        axis.stairs(total / 1e6, edges, color=colour, linestyle=style, linewidth=1.4, label=label, baseline=None)


def _machine_area(
    axis: Axes, timeline: Timeline, edges: np.ndarray, name: str, label: str, unit: float = 1.0, colour: str = GREY
) -> None:
    """Pale area of the sum over the machines."""
    values = _binned(timeline, edges, name)
    if values:
        total = np.ma.masked_invalid(np.stack(values)).sum(axis=0).filled(0)
        axis.stairs(total / unit, edges, fill=True, color=colour, alpha=0.22, linewidth=0, label=label)


def _binned(timeline: Timeline, edges: np.ndarray, name: str) -> list[np.ndarray]:
    """Means of a curve in the bins, for each rank that has it."""
    unit = _unit(timeline, edges)
    return [
        binned(timeline.curves[rank, name], edges * unit)
        for rank in timeline.ranks
        if timeline.curves.get((rank, name))
    ]


def binned(curve: Curve, edges: np.ndarray) -> np.ndarray:
    """Mean of a curve in each bin. The value of a point holds since the point before; NaN after the last point."""
    times, values = np.array(curve).T
    times = np.concatenate([[min(edges[0], times[0])], times])
    integral = np.concatenate([[0.0], np.cumsum(values * np.diff(times))])
    last = np.minimum(edges[1:], times[-1])
    width = last - edges[:-1]
    inside = width > 1e-9 * (edges[-1] - edges[0])
    gained = np.interp(last, times, integral) - np.interp(edges[:-1], times, integral)
    return np.where(inside, gained / np.where(inside, width, 1.0), np.nan)


def _unit(timeline: Timeline, edges: np.ndarray) -> float:
    """Seconds per unit of the axis."""
    return max(timeline.seconds, 1e-3) / float(edges[-1])


def _finish(axis: Axes, name: str) -> None:
    axis.set_ylabel(name)
    axis.set_ylim(0, None)
    axis.margins(y=0.12)
    _legend(axis)


def _legend(axis: Axes, handles: list[Patch] | None = None) -> None:
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.2, handlelength=1.4)
