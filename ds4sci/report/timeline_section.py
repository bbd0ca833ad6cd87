"""Section of the report with the timeline of a run: figure, table of the stages, events."""

from __future__ import annotations

from pathlib import Path

from ds4sci.monitor.event_log import LINE_KEYS, log_file, read_events
from ds4sci.monitor.timeline import Timeline, read_timeline
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.timeline_figure import SHOWN_RANKS, panels_of, timeline_figure

EVENTS_SHOWN = 300
"""Lines of the list of events: half from its begin, half from its end."""


def timeline_parts(run: Path) -> list[str]:
    """HTML of the section of the run folder ``run``; empty if the run was not monitored."""
    timeline = read_timeline(run)
    if timeline is None:
        return []
    heights = [height for height, _ in panels_of(timeline)]
    picture = figures.svg(
        timeline_figure, timeline, size=(11, 0.7 + 1.25 * sum(heights)), panels=(len(heights), 1), heights=heights
    )
    alt = f"Stages of {len(timeline.ranks)} ranks over {timeline.seconds:.0f} s, with CPU, memory, disk and network"
    parts = [html.paragraph(_introduction(timeline)), html.figure(picture, alt, _caption(timeline), wide=True)]
    return [
        *parts,
        _table(timeline),
        html.collapsible(f"Events of rank {timeline.ranks[0]}", events_text(run, timeline.ranks[0])),
    ]


def _introduction(timeline: Timeline) -> str:
    hosts = sorted(set(timeline.hosts.values()))
    ranks = f"{len(timeline.ranks)} rank{'s' * (len(timeline.ranks) > 1)}"
    text = f"{ranks} on {', '.join(hosts[:4])}{' and others' * (len(hosts) > 4)}, {timeline.seconds:,.0f} s"
    if len(timeline.starts) > 1:
        text += f", {len(timeline.starts)} starts of the run; the pauses between them are cut out"
    if timeline.cost:
        text += f". The sampling thread used {max(timeline.cost.values()):.3%} of the time of a core"
    if len(hosts) > 1:
        text += ". The times are those of each machine's clock"
    return text + "."


def _caption(timeline: Timeline) -> str:
    text = (
        "Lines: processes, with their data-loading workers in CPU and disk. Areas: whole machines, including other "
        "programs."
    )
    if len(timeline.ranks) > SHOWN_RANKS:
        text += f" Stages: the first {SHOWN_RANKS} of {len(timeline.ranks)} ranks."
    if any(stage.is_open for stage in timeline.stages):
        text += " A process that was killed within a stage ends that stage with its last sign of life."
    return text


def _table(timeline: Timeline) -> str:
    """Seconds, CPU and disk of each stage: means over the ranks."""
    totals, device, ranks = timeline.totals(), timeline.totals(on="device"), len(timeline.ranks)
    whole = sum(one["seconds"] for one in totals.values()) or 1.0
    header = ["stage", "times", "seconds", "% of the time", "CPU (cores)", "read (MB)", "written (MB)"]
    header += ["seconds on the GPU"] * bool(device)
    rows = []
    for name, one in sorted(totals.items(), key=lambda item: -item[1]["seconds"]):
        seconds = max(one["seconds"], 1e-9)
        cells = [
            "other work" if name == "run" else name, f"{one['count'] / ranks:,.0f}", f"{seconds / ranks:,.2f}",
            f"{100 * seconds / whole:.1f}", f"{one['cpu_s'] / seconds:.2f}" if "cpu_s" in one else "–",
            *(f"{one[key] / 1e6 / ranks:,.1f}" if key in one else "–" for key in ("read", "written")),
        ]  # fmt: skip
        rows.append(cells + ([f"{device[name]['seconds'] / ranks:,.2f}" if name in device else "–"] if device else []))
    note = "Means over the ranks, without nested stages: a save within train counts as save."
    return html.table(header, rows) + html.paragraph(note)


def events_text(run: Path, rank: int) -> str:
    """Begins, ends and messages of a rank as indented lines, with seconds since the first."""
    lines, depth, first = [], {"host": 0, "device": 0}, None
    for event in read_events(log_file(run, rank)):
        if event["kind"] == "sample":
            continue
        first = event["time"] if first is None else first
        on = event.get("on", "host")
        if event.get("name") == "monitor":  # a new attempt
            depth = {"host": 0, "device": 0}
        depth[on] -= event["kind"] == "end" and depth[on] > 0
        values = {key: value for key, value in event.items() if key not in LINE_KEYS}
        shown = " ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        what = f"{'GPU ' if on == 'device' else ''}{event['kind']} {event.get('name', '')}  {shown}".rstrip()
        lines.append(f"{event['time'] - first:10.2f} s  {'  ' * depth[on]}{what}")
        depth[on] += event["kind"] == "begin"
    if len(lines) > EVENTS_SHOWN:
        half = EVENTS_SHOWN // 2
        lines[half:-half] = [f"… {len(lines) - EVENTS_SHOWN:,} lines left out; all are in {log_file(run, rank)}"]
    return "\n".join(lines)
