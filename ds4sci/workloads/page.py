"""Report of a workload's runs: one page with quality over time, times to quality and hyperparameters."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ds4sci.config import hyperparameters
from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import RunConfig
from ds4sci.files.atomic_files import replace_text
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.run_report import write_report as write_run_report
from ds4sci.workloads.results import RunOutcome, benchmark_of, find_outcomes

OUTCOMES = {
    "reached": "target reached", "missed": "last step, target not reached", "stopped": "stopped; can be resumed",
    "failed": "failed",
}  # fmt: skip
"""``RunOutcome.outcome`` → text."""


def write_page(folder: Path) -> Path:
    """Write ``FOLDER/report.html`` for the runs in ``folder``, and the report of each run; return the path.

    Raises ValueError if ``folder`` holds no runs of a benchmark, or runs of several.
    """
    outcomes = find_outcomes(folder)
    benchmark = benchmark_of(outcomes[0].artifacts)
    assert benchmark is not None
    body = [
        html.section("Result", _tiles(benchmark, outcomes), _table(benchmark, outcomes, folder)),
        html.section("Quality over time", *_curves(benchmark, outcomes)),
        html.section("Inference", *_inference(benchmark, outcomes)),
        html.section("Hyperparameters", *_hyperparameters(outcomes)),
        html.section("Machine", *_machines(outcomes)),
    ]
    seeds = f"{len(outcomes)} run{'s' * (len(outcomes) > 1)}"
    header = (
        f"<h1>{html.escape(benchmark.name)}</h1><p>{html.escape(benchmark.title)} · "
        f"{html.escape(benchmark.metric)} {html.escape(benchmark.condition)} · {seeds}</p>"
    )
    footer = "Created by <code>ds4sci bench report</code>. Self-contained: no network access, no scripts."
    path = folder / "report.html"
    replace_text(path, html.page(f"{benchmark.name} · ds4sci", header, body, footer))
    return path


def minutes(seconds: float | None) -> str:
    """Time in minutes, or a dash."""
    return "–" if seconds is None else f"{seconds / 60:.2f}"


def _tiles(benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome]) -> str:
    times = [one.seconds for one in outcomes if one.is_reached and one.seconds is not None]
    values = [one.value for one in outcomes if one.value is not None]
    best = (max if benchmark.direction == "higher" else min)(values, default=None)
    return html.tiles(
        [
            (
                f"{len(times)} of {len(outcomes)}",
                "runs reached the target",
                f"{benchmark.metric} {benchmark.condition}",
            ),
            (minutes(statistics.median(times)) if times else "–", "median minutes to quality", "evaluations included"),
            (f"{minutes(min(times))} – {minutes(max(times))}" if times else "–", "fastest – slowest", "minutes"),
            ("–" if best is None else f"{best:.4g}", f"best {benchmark.metric}", "last evaluation of each run"),
        ]
    )


def _table(benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome], folder: Path) -> str:
    rows = []
    for one in outcomes:
        report = write_run_report(one.run)
        link = f'<a href="{html.escape(str(report.relative_to(folder)))}">{html.escape(one.run.name)}</a>'
        kind = "good" if one.is_reached else "bad"
        text = OUTCOMES[one.outcome] + (f": {one.error}" if one.error else "")
        rows.append(
            [
                link, str(one.seed), f'<span class="{kind}">{html.escape(text)}</span>',
                "–" if one.value is None else f"{one.value:.4g}", f"{one.step:,}",
                minutes(one.seconds) if one.is_reached else "–", html.escape(one.artifacts.commit[:10]),
            ]
        )  # fmt: skip
    header = ["run", "seed", "outcome", benchmark.metric, "step", "minutes to quality", "commit"]
    note = html.paragraph(
        "The time to quality begins with the first step and ends with the evaluation that reaches the target. It "
        "contains evaluations and checkpoints, but neither the start of the processes nor the making of the dataset. "
        "The page of each run has its learning curves and pictures."
    )
    return html.table(header, rows, raw=True) + note


def _curves(benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome]) -> list[str]:
    if not any(one.evaluations for one in outcomes):
        return [html.missing("No run has been evaluated yet.")]
    picture = figures.svg(quality_curves, benchmark, outcomes, size=(11, 4.6), panels=(1, 2))
    alt = (
        f"{benchmark.metric} of {len(outcomes)} runs over training time and over steps; the target is "
        f"{benchmark.condition}."
    )
    caption = "Held-out data, averaged (EMA) weights. A filled circle marks the evaluation that reached the target."
    return [html.figure(picture, alt, caption, wide=True)]


def quality_curves(axes: Sequence[Axes], benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome]) -> None:
    """The metric of every run and the target: over minutes of training on the left, over steps on the right.

    The vertical axis shows the values of the second half of the runs and the target; a larger beginning is cut off.
    """
    shown = [benchmark.target]
    for number, one in enumerate(outcomes):
        points = [point for point in one.evaluations if math.isfinite(point.value)]
        shown += [point.value for point in points[len(points) // 2 :]]
        values = [point.value for point in points]
        colour = figures.SERIES[number % len(figures.SERIES)]
        style = ("-", "--", ":")[number // len(figures.SERIES) % 3]
        places = ([point.seconds / 60 for point in points], [float(point.step) for point in points])
        for panel, x in zip(axes, places, strict=True):
            panel.plot(x, values, style, color=colour, marker="o", markersize=3.5, fillstyle="none", label=one.run.name)
            if one.is_reached and points:
                panel.plot(x[-1:], values[-1:], "o", color=colour, markersize=7)
    margin = 0.12 * (max(shown) - min(shown)) or 0.1 * abs(benchmark.target) or 1.0
    for panel, label in zip(axes, ("minutes of training", "step"), strict=True):
        target = f"target {benchmark.condition}"
        panel.axhline(benchmark.target, color=figures.GREY, linestyle="--", linewidth=1.2, label=target)
        panel.set(xlabel=label, ylabel=benchmark.metric, ylim=(min(shown) - margin, max(shown) + margin))
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(6))
    axes[0].set_title("Over time")
    axes[1].set_title("Over steps")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _inference(benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome]) -> list[str]:
    rows = [
        [
            one.run.name, f"{found['step']:,}", f"{found['examples']:,}", f"{found['examples_per_second']:.3g}",
            f"{found['spread']:.0%}", f"{found['value']:.4g}", found["device"],
        ]
        for one in outcomes
        if (found := one.inference) is not None
    ]  # fmt: skip
    if not rows:
        command = f"ds4sci bench run {benchmark.name} --mode inference"
        return [html.missing("Inference has not been measured yet.", command)]
    header = ["run", "step", "examples", "examples per second", "spread", benchmark.metric, "device"]
    note = "Held-out examples, from the stored data to the metric, on one device; median of several passes."
    return [html.table(header, rows), html.paragraph(note)]


def _hyperparameters(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Reference hyperparameters, and the runs that differ from them."""
    columns: dict[str, list[str]] = {}
    reference: dict[str, str] = {}
    division, unreadable = [], []
    for one in outcomes:
        try:
            config = RunConfig.load(one.run / "config.json")
        except ValueError as error:
            unreadable.append(f"{one.run.name}: {error}")
            continue
        for entry in hyperparameters.compare(config):
            reference[entry.key] = _text(entry.reference)
            columns.setdefault(entry.key, []).append(_text(entry.own))
        found = hyperparameters.differences(config)
        if found:
            division.append(f"{one.run.name}: {'; '.join(found)}")
    parts = [html.missing(text) for text in unreadable]
    if not reference:
        return [*parts, html.paragraph("The benchmark names no reference hyperparameters.")]
    rows = [[key, value, ", ".join(dict.fromkeys(columns[key]))] for key, value in reference.items()]
    parts.append(html.table(["key", "reference", "runs"], rows, words=True))
    if division:
        parts.append(html.paragraph(f"Open division, because of other hyperparameters: {' · '.join(division)}."))
    else:
        parts.append(html.paragraph("All runs have the reference hyperparameters, as the closed division requires."))
    return parts


def _machines(outcomes: Sequence[RunOutcome]) -> list[str]:
    """Each different machine once, with its runs."""
    groups: dict[str, list[str]] = {}
    for one in outcomes:
        machine = {key: value for key, value in (one.artifacts.machine or {}).items() if key != "commit"}
        groups.setdefault(json.dumps(machine, sort_keys=True), []).append(one.run.name)
    parts = []
    for text, names in groups.items():
        machine = json.loads(text)
        if not machine:
            parts.append(html.missing(f"{', '.join(names)}: machine.json is missing."))
            continue
        versions = machine.pop("versions", {})
        rows = [["runs", ", ".join(names)], *([key, _text(value)] for key, value in machine.items())]
        rows.append(["versions", ", ".join(f"{name} {version}" for name, version in versions.items())])
        parts.append(html.table([], rows, words=True))
    return parts


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
