"""Page of a scaling measurement: efficiency, utilization, communication, memory and cost, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ds4sci import __version__
from ds4sci.report import page
from ds4sci.report.figures import BLUE, GREY, RED, svg
from ds4sci.scaling.efficiency import Row, rows
from ds4sci.scaling.logs import ScalingLog

COLOURS = {"strong": BLUE, "weak": RED}
HEADER = (
    "mode", "ranks", "batch", "s/step", "samples/s", "speed-up", "efficiency", "utilization", "comm.", "MB/rank",
    "node-h/10⁶", "spread",
)  # fmt: skip


def cells(one: Row) -> list[str]:
    """Cells of the table, one per entry of ``HEADER``."""
    label = f"{one.ranks} (oversubscribed)" if one.is_oversubscribed else str(one.ranks)
    return [
        one.mode, label, f"{one.batch:,}", f"{one.seconds:.4g}", f"{one.rate:.4g}", f"{one.speed_up:.2f}",
        f"{one.efficiency:.1%}", _share(one.utilization), _share(one.communication), f"{one.memory_mb:,.0f}",
        f"{one.node_hours:.3g}", f"{one.spread:.0%}",
    ]  # fmt: skip


def as_text(logs: Sequence[ScalingLog]) -> str:
    """The table as text."""
    lines = [list(HEADER), *map(cells, rows(logs))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


def html(logs: Sequence[ScalingLog]) -> str:
    """The page. It needs no other file."""
    found = rows(logs)
    first = logs[0]
    best = {mode: [one for one in found if one.mode == mode and not one.is_oversubscribed] for mode in COLOURS}
    tiles = [
        (f"{ones[-1].efficiency:.0%}", f"{mode} scaling efficiency", f"on {ones[-1].ranks} ranks, from {ones[0].ranks}")
        for mode, ones in best.items()
        if ones
    ]
    used = [one.utilization for one in found if one.utilization is not None and not one.is_oversubscribed]
    if used:
        tiles.append((f"{max(used):.1%}", "utilization", "of the measured peak, at best"))
    tiles.append((f"{max(one.memory_mb for one in found):,.0f} MB", "peak memory of a rank", "over all runs"))
    machine = first.machine
    measured = {r.load for one in logs for r in one.repeats if r.load is not None}
    loads = ", ".join(f"{load:.1f}" for load in sorted(measured))
    facts = [
        ("machine", f"{machine.get('cpu')}, {machine.get('cores')} cores, GPUs: {machine.get('gpus') or 'none'}"),
        ("threads per rank", str(first.threads or "unknown")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (machine.get("versions") or {}).items())),
        ("commit", str(machine.get("commit"))), ("command", first.command or "–"),
        ("load before the runs", loads or "–"),
    ]  # fmt: skip
    note = (
        "Strong scaling keeps the global batch, weak scaling the batch of a rank. Efficiency is relative to the "
        "smallest number of ranks. Utilization is model FLOPs without recomputation / (peak × time). Communication is "
        "the time in collectives, waiting for slower ranks included. Ranks above the cores or GPUs are oversubscribed: "
        "they share them, and their times say nothing about a larger machine. Node-h/10⁶: node-hours of a million "
        "samples. Spread is (slowest − fastest repeat) / median."
    )
    parts = [
        page.section("Overview", page.tiles(tiles), page.figure(
            svg(_efficiency, found, size=(10.2, 3.8), panels=(1, 2)), "efficiency and speed-up by number of ranks",
            "Left: efficiency. Right: speed-up in samples/s. Hollow markers are oversubscribed; grey is ideal.",
            wide=True)),
        page.section("Figures", page.table(HEADER, [cells(one) for one in found]), page.paragraph(note)),
        page.section("Step time and memory", page.figure(
            svg(_parts, found, size=(10.2, 3.8), panels=(1, 2)), "step time with communication, and memory, by run",
            "Left: seconds per step, of which communication is red. Right: peak memory of a rank.", wide=True)),
        page.section("Conditions", page.table((), facts, words=True)),
    ]  # fmt: skip
    head = f"<h1>Scaling of {escape(first.name)}</h1><p>{len(logs)} measurements, {escape(str(machine.get('cpu')))}</p>"
    return page.page(f"Scaling of {first.name}", head, parts, f"ds4sci {__version__}")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _efficiency(axes: Sequence[Axes], found: Sequence[Row]) -> None:
    left, right = axes
    ranks = sorted({one.ranks for one in found})
    for mode, colour in COLOURS.items():
        ones = [one for one in found if one.mode == mode]
        for panel, values in ((left, [one.efficiency for one in ones]), (right, [one.speed_up for one in ones])):
            panel.plot([one.ranks for one in ones], values, color=colour, label=mode)
            for one, value in zip(ones, values, strict=True):
                face = "white" if one.is_oversubscribed else colour
                panel.plot(one.ranks, value, "o", color=colour, markerfacecolor=face, markersize=7, clip_on=False)
    left.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    right.plot(ranks, [one / ranks[0] for one in ranks], color=GREY, linestyle="--", linewidth=1)
    left.set(title="Efficiency", xlabel="ranks", ylim=(0, 1.25))
    right.set(title="Speed-up", xlabel="ranks", ylim=(0, None))
    for panel in axes:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(ranks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter("{x:g}")
    left.legend(loc="lower left")


def _parts(axes: Sequence[Axes], found: Sequence[Row]) -> None:
    left, right = axes
    names = [f"{one.mode}\n{one.ranks}{'*' if one.is_oversubscribed else ''}" for one in found]
    places: Any = range(len(found))
    waiting = [(one.communication or 0.0) * one.seconds for one in found]
    left.bar(
        places, [one.seconds - w for one, w in zip(found, waiting, strict=True)], color=BLUE, label="compute and rest"
    )
    left.bar(
        places,
        waiting,
        bottom=[one.seconds - w for one, w in zip(found, waiting, strict=True)],
        color=RED,
        label="communication",
    )
    left.set(title="Seconds per step", ylim=(0, 1.25 * max(one.seconds for one in found)))
    left.legend(loc="upper left", ncols=2)
    right.bar(places, [one.memory_mb for one in found], color=BLUE)
    right.set(title="Peak memory of a rank (MB); * oversubscribed")
    for panel in axes:
        panel.set_xticks(places, names)
        panel.grid(axis="x", visible=False)
