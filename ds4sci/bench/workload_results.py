"""Times to quality of trained workloads as one measurement: a row per workload, from the folders of its runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds4sci.bench.measurement import Measurement
from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.workloads.results import RunOutcome, benchmark_of, find_outcomes

COLUMNS = [
    "workload", "target", "runs", "reached", "metric, median", "steps, median", "steps, range", "minutes, median",
    "minutes, range", "examples/s, inference", "best baseline",
]  # fmt: skip
COMMITS = "commits of the runs: "


def summarize(file: Path, folders: Sequence[Path]) -> Measurement:
    """Return times to quality of the runs in ``folders``, one folder per workload, for the table in ``file``.

    Median and range are those of the runs that reached the target. If ``file`` exists, its rows of other workloads are
    kept, so that workloads can be measured one after the other. Raises ValueError if runs were made on different
    processors or GPUs, since their times cannot be compared, or if a folder holds no runs.
    """
    found = [find_outcomes(folder) for folder in folders]
    machines = {str(one.artifacts.run): one.artifacts.machine or {} for runs in found for one in runs}
    newest = next(iter(machines.values()))
    rows = {row[0]: row for row in map(_row, found)}
    commits = {one.artifacts.commit[:12] for runs in found for one in runs}
    if file.exists():
        earlier = _read(file)
        kept = [row for row in earlier["rows"] if row[0] not in rows]
        if kept:
            machines = {str(file): earlier["machine"], **machines}
            commits |= {
                name for note in earlier["notes"] if COMMITS in note for name in note.split(COMMITS)[1].split(", ")
            }
        rows = {row[0]: row for row in kept} | rows
    _require_one_machine(machines)
    return Measurement(
        name=file.stem,
        title="Time to quality of the workloads",
        command="ds4sci bench run NAME --seed 0 …; ds4sci bench report runs/benchmarks/* --json workloads.json",
        columns=COLUMNS,
        rows=[rows[name] for name in sorted(rows)],
        notes=[
            "from the first step to the end of the evaluation that reaches the target, with all evaluations",
            COMMITS + ", ".join(sorted(commits)),
        ],
        machine=newest,
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        earlier: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); move it away to write a new table") from None
    if not isinstance(earlier, dict) or earlier.get("columns") != COLUMNS:
        raise ValueError(f"{file}: not a table of times to quality; name another file")
    return earlier


def _require_one_machine(machines: Mapping[str, Mapping[str, Any]]) -> None:
    first, *others = machines
    for other in others:
        for key in ("cpu", "cores", "gpus"):
            one, two = machines[first].get(key), machines[other].get(key)
            if one != two:
                raise ValueError(
                    f"{other}: made on another machine than {first} ({key}: {two!r}, not {one!r}); times to quality "
                    "of one table are measured on one machine"
                )


def _row(outcomes: Sequence[RunOutcome]) -> list[Any]:
    benchmark = benchmark_of(outcomes[0].artifacts)
    assert benchmark is not None
    reached = [one for one in outcomes if one.is_reached and one.seconds is not None and one.value is not None]
    steps = [one.step for one in reached]
    minutes = [one.seconds / 60 for one in reached if one.seconds is not None]
    rates = [found["examples_per_second"] for one in outcomes if (found := one.inference) is not None]
    return [
        benchmark.name, f"{benchmark.metric} {benchmark.condition}", len(outcomes), len(reached),
        statistics.median(one.value for one in reached if one.value is not None) if reached else None,
        statistics.median(steps) if steps else None,
        f"{min(steps):,}–{max(steps):,}" if len(steps) > 1 else None,
        statistics.median(minutes) if minutes else None,
        f"{min(minutes):.2f}–{max(minutes):.2f}" if len(minutes) > 1 else None,
        statistics.median(rates) if rates else None, _best_baseline(benchmark, outcomes),
    ]  # fmt: skip


def _best_baseline(benchmark: BenchmarkConfig, outcomes: Sequence[RunOutcome]) -> str | None:
    """The best baseline of ``ds4sci eval``, with its metric; None if no run was evaluated, or the task has none."""
    values = {
        name: own[benchmark.metric]
        for one in outcomes
        for name, own in ((one.artifacts.held_out or {}).get("baselines") or {}).items()
        if isinstance(own, dict) and own.get(benchmark.metric) is not None
    }
    if not values:
        return None
    best = (max if benchmark.direction == "higher" else min)(values, key=lambda name: values[name])
    return f"{values[best]:.4g} ({best})"
